"""Branches: what freezing a prefix at a moment of a recorded run cost, and what could be known of it by then."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smartfrz_lightning.predictor.later import later_inputs

MARGIN = 1.0
"""Points of accuracy that freezing a prefix may cost and still count as safe."""


@dataclass(frozen=True)
class Branch:
    """A prefix that was frozen at a moment of a recorded run, to the end of it.

    Attributes:
        network: The network of the run.
        instant: Number of the run and moment.
        inputs: ``[inputs]`` of ``later_inputs``.
        window: ``[snapshots, 2]``: at each twentieth until the moment, the logarithm of how far the weights of the
            prefix moved since the one before over the mean learning rate, minus the same at the first, and the
            logarithm of the loss relative to that of the start.
        points: Accuracy at the end minus that of the run in which everything trained, in points.
        first: Logarithm of the loss relative to that of the first batch.
    """

    network: str
    instant: int
    inputs: Tensor
    window: Tensor
    points: float
    first: float

    @property
    def safe(self) -> bool:
        """Whether it cost at most ``MARGIN``."""
        return self.points >= -MARGIN


def start_loss(case: Mapping[str, Any]) -> float:
    """Training loss at the start of a recorded run, as the later stage takes it."""
    return min(case["first_loss"], case["losses"][0][0])


def learned(case: Mapping[str, Any]) -> bool:
    """Whether the training loss of a recorded run fell by a tenth: one that learned nothing tells nothing."""
    return case["losses"][0][-1] < 0.9 * case["first_loss"]


def branches(case: Mapping[str, Any], number: int = 0) -> list[Branch]:
    """All prefixes that were frozen in a recorded run after its start.

    Args:
        case: A line of ``research/results/moments.jsonl``.
        number: Of the run.
    """
    full = next(run for run in case["runs"] if run["kind"] == "full")
    found = []
    for run in case["runs"]:
        if run["kind"] != "frozen" or not run["moment"]:
            continue
        points = run["accuracy"] - full["accuracy"]
        found.append(_branch(case, number, run["moment"], run["depth"], points))
    return found


def trials(case: Mapping[str, Any]) -> dict[int, float]:
    """By depth, how much higher the training loss was at 5 to 20 % of the run with the prefix frozen from the start.

    Relative to the loss of the first batch, and between -0.5 and 0.5.

    Args:
        case: A line of ``research/results/moments.jsonl``.
    """
    early = {
        run["depth"]: np.mean(losses[1:4]) / case["first_loss"]
        for run, losses in zip(case["runs"], case["losses"], strict=True)
        if run["kind"] in ("full", "frozen") and not run["moment"]
    }
    full = early.pop(0)
    return {depth: float(np.clip(loss - full, -0.5, 0.5)) for depth, loss in early.items()}


def ends(case: Mapping[str, Any], number: int = 0) -> list[Branch]:
    """The same prefixes, frozen when the run is over: that costs nothing.

    Args:
        case: As of ``branches``.
        number: Of the run.
    """
    depths = {run["depth"] for run in case["runs"] if run["kind"] == "frozen"}
    return [_branch(case, number, case["case"]["steps"], depth, 0.0) for depth in sorted(depths)]


def _branch(case: Mapping[str, Any], number: int, moment: int, depth: int, points: float) -> Branch:
    checks = case["checks"]
    layers, per_run = len(checks["moved"][0]), len(checks["moved"])
    count = max(1, int(per_run * moment / case["case"]["steps"] + 1e-6))
    moved, rates = (torch.tensor(checks[name][:count]).clamp(min=1e-12).log10() for name in ("moved", "rates"))
    known = torch.tensor(case["losses"][0][:count])
    losses, first = known / start_loss(case), float((known[-1] / case["first_loss"]).clamp(min=0.01).log10())
    pace = moved - rates[:, None]
    slowed = (pace - pace[0])[:, :depth].mean(1)
    inputs = later_inputs(layers, count / per_run, float(losses[-1]))[depth - 1]
    window = torch.stack([slowed, losses.clamp(min=0.01).log10()], 1)
    return Branch(case["case"]["network"], 100 * number + count, inputs, window, points, first)
