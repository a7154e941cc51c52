"""Recorded consequences of freezing as training data for the prefix predictor."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from smartfrz_lightning.history.movement import Movement
from smartfrz_lightning.predictor.prefix_inputs import prefix_inputs

MARGIN = 1.0
"""Points of accuracy that freezing a prefix may cost and still count as safe."""

NOISE = 0.8
"""Standard error of a difference of two accuracies on 1,000 to 3,000 images, in points."""


@dataclass(frozen=True)
class Branch:
    """A prefix that was frozen at a moment of a recorded run, to the end of it.

    Attributes:
        network: The network of the run.
        instant: Number of the run and moment.
        seen: ``[snapshots, inputs]`` of :func:`~smartfrz_lightning.predictor.prefix_inputs.prefix_inputs`.
        context: ``[inputs]`` of the same.
        points: Accuracy at the end minus that of the run in which everything trained, in points.
        safe: Probability that it cost at most :data:`MARGIN`, as far as ``points`` tells.
    """

    network: str
    instant: int
    seen: Tensor
    context: Tensor
    points: float
    safe: float


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
        safe = (1 + math.erf((points + MARGIN) / NOISE / math.sqrt(2))) / 2
        found.append(_branch(case, number, run["moment"], run["depth"], points, safe))
    return found


def ends(case: Mapping[str, Any], number: int = 0) -> list[Branch]:
    """The same prefixes, frozen when the run is over: that costs nothing.

    Args:
        case: As of :func:`branches`.
        number: Of the run.
    """
    depths = {run["depth"] for run in case["runs"] if run["kind"] == "frozen"}
    return [_branch(case, number, case["case"]["steps"], depth, 0.0, 1.0) for depth in sorted(depths)]


def _branch(case: Mapping[str, Any], number: int, moment: int, depth: int, points: float, safe: float) -> Branch:
    checks = case["checks"]
    per_run = len(checks["moved"])
    count = max(1, int(per_run * moment / case["case"]["steps"] + 1e-6))
    movement = Movement(
        moved=torch.tensor(checks["moved"][:count]),
        rates=torch.tensor(checks["rates"][:count]),
        losses=torch.tensor(case["losses"][0][:count]) / case["first_loss"],
        progress=torch.arange(1, count + 1) / per_run,
    )
    seen, context = prefix_inputs(movement)
    name, instant = case["case"]["network"], 100 * number + count
    return Branch(name, instant, seen[depth - 1], context[depth - 1], points, safe)


def collate(chosen: Sequence[Branch]) -> dict[str, Tensor]:
    """A batch: ``seen`` padded at the end, ``lengths``, ``context``, ``safe`` and ``instant``."""
    return {
        "seen": pad_sequence([branch.seen for branch in chosen], batch_first=True),
        "lengths": torch.tensor([len(branch.seen) for branch in chosen]),
        "context": torch.stack([branch.context for branch in chosen]),
        "safe": torch.tensor([branch.safe for branch in chosen]),
        "instant": torch.tensor([branch.instant for branch in chosen]),
    }


class ConsequencesDataModule(LightningDataModule):
    """Prefixes of recorded runs with what freezing them cost, split by network.

    Args:
        recorded: File of recorded runs, a line of JSON each.
        held_out: Networks for validation alone; with none, everything is trained on and validated on itself.
        batch_size: Prefixes a batch.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A held-out network is in no recording, or none is left to train on.
    """

    def __init__(self, recorded: str, held_out: list[str] | None = None, batch_size: int = 64) -> None:
        super().__init__()
        path = Path(recorded)
        if not path.is_file():
            raise FileNotFoundError(f"recorded={recorded!r}: no such file; record runs as research/README.md tells")
        self.batch_size, self.held_out = batch_size, held_out or []
        cases = [case for case in map(json.loads, path.read_text().splitlines()) if learned(case)]
        self._later = [branch for number, case in enumerate(cases) for branch in branches(case, number)]
        self._ends = [branch for number, case in enumerate(cases) for branch in ends(case, number)]
        self.networks = sorted({branch.network for branch in self._later})
        if unknown := set(self.held_out) - set(self.networks):
            raise ValueError(f"held_out={sorted(unknown)}: the recordings are of {self.networks}")
        if not set(self.networks) - set(self.held_out):
            raise ValueError(f"held_out={self.held_out} leaves no network to train on: record another one")

    def setup(self, stage: str) -> None:
        self.train = [branch for branch in self._later + self._ends if branch.network not in self.held_out]
        self.val = [branch for branch in self._later if branch.network in self.held_out or not self.held_out]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True, collate_fn=collate)  # pyright: ignore

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 512, collate_fn=collate)  # pyright: ignore
