"""What freezing would come to if its cost were known beforehand, and what freezing at averaged weights came to."""

import json
from pathlib import Path

import numpy as np

from research.outcomes.branches import MARGIN, learned
from research.outcomes.later import policy, recordings
from research.outcomes.outcome import Outcome

SHOWN = ("what is known beforehand", "points", "worst run", "FLOPs")
AVERAGES = ("frozen after", "prefixes", "as they are", "safe", "at averages", "safe", "averages, more or less")


def hindsight(path: Path) -> list[list[str]]:
    """Mean and worst points, and mean FLOPs, of runs in which what costs at most the margin freezes, and saves most.

    Args:
        path: File of recorded runs.
    """
    data, _ = recordings(path)
    later = policy(data, np.array([float(one.branch.safe) for one in data]), 0.5)
    start = []
    for case in filter(learned, map(json.loads, path.read_text().splitlines())):
        outcome = Outcome.fromdict(case)
        prefixes = [run for run in outcome.runs if run.kind == "frozen" and not run.moment]
        known = [(run.accuracy - outcome.full.accuracy, outcome.cost(run)) for run in prefixes]
        start.append(min((one for one in known if one[0] >= -MARGIN), key=lambda one: one[1], default=(0.0, 1.0)))
    either = [min(pair, key=lambda one: one[1]) for pair in zip(start, later, strict=True)]
    rows = []
    named = {
        "from two fifths of the run on": later,
        "for the whole run": start,
        "whichever of these saves more": either,
    }
    for name, found in named.items():
        points, cost = np.array(found).T
        rows.append([name, f"{points.mean():+.1f}", f"{points.min():+.1f}", f"{cost.mean():.2f}"])
    return rows


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
