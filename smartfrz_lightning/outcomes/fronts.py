"""Fronts: those of a recorded case that were held from the start, what a probe saw of them, and what became of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from smartfrz_lightning.outcomes.case import Case
from smartfrz_lightning.outcomes.examples import Example
from smartfrz_lightning.outcomes.fitting import HARMLESS
from smartfrz_lightning.outcomes.look_endings import frontier


@dataclass
class Fronts:
    """``F`` fronts of a case, by depth.

    Attributes:
        case: The case.
        depths: Of the fronts, in layers.
        inputs: ``[F, inputs]`` of the start predictor.
        costs: ``[F]``: FLOPs of the run with the front held, relative to full training.
        gains: ``[F]``: points of accuracy above full training.
        above: ``[F]``: points above plain training that is shortened to the same FLOPs.
        losses: ``[F]``: validation loss relative to that of full training; ``None`` if it was not recorded.

    Example:
        >>> from smartfrz_lightning.outcomes.fronts import load_fronts
        >>> one = load_fronts("configs/outcomes/results/held_out.jsonl")[0]
        >>> len(one.depths), one.inputs.shape
        (5, torch.Size([5, 12]))
    """

    case: Case
    depths: list[int]
    inputs: Tensor
    costs: Tensor
    gains: Tensor
    above: Tensor
    losses: Tensor | None = None

    @property
    def harmless(self) -> Tensor:
        """``[F]``: whether holding the front cost no more than still counts as no harm."""
        return self.gains >= -HARMLESS


def load_fronts(path: str | Path) -> list[Fronts]:
    """Read condensed cases, or recorded second looks.

    Args:
        path: A file of :func:`~smartfrz_lightning.outcomes.condense.condense`, or of ``outcomes.look_again``.

    Example:
        >>> from smartfrz_lightning.outcomes.fronts import load_fronts
        >>> len(load_fronts("configs/outcomes/results/second_look.jsonl"))
        49
    """
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [fronts_of(Example.fromdict(line)) if "runs" in line else _of_look(line) for line in lines]


def fronts_of(one: Example) -> Fronts:
    """Those of a recorded case.

    Example:
        >>> from smartfrz_lightning.outcomes.examples import load_examples
        >>> from smartfrz_lightning.outcomes.fronts import fronts_of
        >>> fronts_of(load_examples("configs/outcomes/results/held_out.jsonl")[0]).gains.shape
        torch.Size([5])
    """
    runs = [one.held[depth] for depth in sorted(one.held)]
    depths = [run.depth for run in runs]
    return Fronts(
        one.outcome.case,
        depths,
        one.inputs[[depth - 1 for depth in depths]],
        torch.tensor([one.outcome.cost(run) for run in runs]),
        torch.tensor([one.gain(run) for run in runs]),
        torch.tensor([one.above(run) for run in runs]),
        torch.tensor([run.loss / one.outcome.full.loss for run in runs]),
    )


def _of_look(line: dict) -> Fronts:
    fronts = sorted(line["fronts"], key=lambda front: front["depth"])
    depths = [front["depth"] for front in fronts]
    return Fronts(
        Case(**{**line["case"], "classes": tuple(line["case"]["classes"])}),
        depths,
        torch.tensor(line["inputs"])[[depth - 1 for depth in depths]],
        torch.tensor([front["cost"] for front in fronts]),
        torch.tensor([front["accuracy"] - line["full"] for front in fronts]),
        torch.tensor([front["accuracy"] - frontier(line, front["cost"]) for front in fronts]),
    )
