"""Prefixes that were frozen later in recorded runs, with all that may tell what that costs."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.outcomes.branches import Branch, branches, ends, learned, trials
from research.outcomes.outcome import Outcome
from smartfrz_lightning.predictor.later import INPUTS


class Example:
    """A branch with all that is compared.

    Args:
        branch: The branch.
        others: Further inputs by name.
        cost: FLOPs of the run relative to the full one.
    """

    def __init__(self, branch: Branch, others: Mapping[str, float], cost: float) -> None:
        self.branch, self.cost, self.run = branch, cost, branch.instant // 100
        self.progress = 1 - 10 ** float(branch.inputs[INPUTS.index("left")])
        self.inputs = dict(zip(INPUTS, branch.inputs.tolist(), strict=True)) | dict(others)


def examples(case: Mapping[str, Any], number: int = 0) -> list[Example]:
    """All prefixes that were frozen later in a run.

    Args:
        case: A line of ``research/results/moments.jsonl``.
        number: Of the run.
    """
    outcome = Outcome.fromdict(dict(case))
    runs = [run for run in outcome.runs if run.kind == "frozen" and run.moment]
    logs = {name: np.log10(np.clip(case["checks"][name], 1e-9, None)) for name in ("moved", "gradient")}
    rates, lost = np.array(case["checks"]["rates"]), trials(case)
    found = []
    for branch, run in zip(branches(case, number), runs, strict=True):
        check, prefix = len(branch.window) - 1, slice(0, run.depth)
        others = {
            "slowed": branch.window[-1, 0],
            "moved": logs["moved"][check, prefix].mean(),
            "gradient": (logs["gradient"][check] - logs["gradient"][0])[prefix].mean(),
            "agreement": np.mean(case["checks"]["agreement"][check][prefix]),
            "length": math.log(outcome.case.steps),
            "epochs": math.log10(run.moment * outcome.case.batch_size / outcome.case.images),
            "rates": math.log10(max(rates[check + 1 :].sum() / rates.sum(), 0.005)),
            "first": branch.first,
            "trial": lost[min(lost, key=lambda depth: abs(depth - run.depth))],
        }
        found.append(Example(branch, {name: float(value) for name, value in others.items()}, outcome.cost(run)))
    return found


def recordings(path: str | Path) -> tuple[list[Example], list[Branch]]:
    """Every prefix that was frozen in runs that learned, and those that froze when a run was over.

    Args:
        path: File of recorded runs, a line of JSON each.
    """
    cases = [case for case in map(json.loads, Path(path).read_text().splitlines()) if learned(case)]
    data = [one for number, case in enumerate(cases) for one in examples(case, number)]
    return data, [branch for number, case in enumerate(cases) for branch in ends(case, number)]
