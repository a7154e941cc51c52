"""What freezing would come to if its cost were known beforehand."""

import json
from pathlib import Path

import numpy as np

from research.outcomes.branches import MARGIN, learned
from research.outcomes.later import policy
from research.outcomes.later_examples import recordings
from research.outcomes.outcome import Outcome

SHOWN = ("what is known beforehand", "points", "worst run", "FLOPs")


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
