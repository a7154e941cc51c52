"""What freezing at averages of the weights came to, beside freezing them as they are."""

import json
from pathlib import Path

import numpy as np

from research.outcomes.branches import MARGIN

SHOWN = ("frozen after", "prefixes", "as they are", "safe", "at averages", "safe", "averages, more or less")


def averages(path: Path, averaged: Path) -> list[list[str]]:
    """Points of the same prefixes, frozen at the weights that they had and at averages of these, by the moment.

    Args:
        path: File of recorded runs.
        averaged: File of the same runs, with prefixes frozen at averages.
    """
    before = {json.dumps(case["case"]): case["runs"] for case in map(json.loads, path.read_text().splitlines())}
    pairs: dict[float, list[tuple[float, float]]] = {}
    for case in map(json.loads, averaged.read_text().splitlines()):
        plain = {
            (run["kind"], run["depth"], run["moment"]): run["accuracy"] for run in before[json.dumps(case["case"])]
        }
        whole = case["runs"][0]["accuracy"]
        for run in case["runs"][1:]:
            share = round(run["moment"] / case["case"]["steps"], 2)
            points = plain["frozen", run["depth"], run["moment"]] - plain["full", 0, 0], run["accuracy"] - whole
            pairs.setdefault(share, []).append(points)
    rows = []
    for share, found in sorted(pairs.items()):
        both = np.array(found)
        (own, mean), (safe, safer) = both.mean(0), (both >= -MARGIN).mean(0)
        more = both[:, 1] - both[:, 0]
        error = more.std(ddof=1) / len(more) ** 0.5
        cells = [f"{own:+.1f}", f"{safe:.0%}", f"{mean:+.1f}", f"{safer:.0%}", f"{more.mean():+.2f} ± {error:.2f}"]
        rows.append([f"{share:.0%} of the run", str(len(found)), *cells])
    return rows
