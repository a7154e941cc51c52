"""Examples: recorded cases as the start predictor sees them, with what became of each front that was held."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smartfrz_lightning.cost.layer_flops import flops_when_frozen
from smartfrz_lightning.engine.probed_start import LEAST, probe_length
from smartfrz_lightning.extras import require
from smartfrz_lightning.outcomes.outcome import Outcome, Run
from smartfrz_lightning.predictor.start_inputs import start_inputs

require("sklearn", "vision")

from scipy.interpolate import PchipInterpolator  # noqa: E402
from sklearn.isotonic import IsotonicRegression  # noqa: E402


@dataclass
class Example:
    """One case.

    Attributes:
        outcome: The case.
        inputs: ``[fronts, inputs]`` of :func:`~smartfrz_lightning.predictor.start_inputs.start_inputs`: every front.
        held: The runs in which a front was held from the start, by depth.
        probe_steps: How many steps of the probe were looked at.

    Example:
        >>> from smartfrz_lightning.outcomes.examples import Example
        >>> Example.__dataclass_fields__.keys() == {"outcome", "inputs", "held", "probe_steps"}
        True
    """

    outcome: Outcome
    inputs: Tensor
    held: dict[int, Run]
    probe_steps: int

    def gain(self, run: Run) -> float:
        """Points of accuracy above full training."""
        return run.accuracy - self.outcome.full.accuracy

    def above(self, run: Run, cached: bool = False) -> float:
        """Points of accuracy above plain training that is shortened to the same FLOPs."""
        return run.accuracy - frontier(self.outcome, self.outcome.cost(run, cached))

    @property
    def family(self) -> str:
        """The network, and whether it was pretrained."""
        return self.outcome.case.network + ("" if self.outcome.case.weights else ", from scratch")


def load_examples(paths: Iterable[str | Path], probe_steps: int | None = None) -> list[Example]:
    """Read recorded cases.

    Args:
        paths: Their files.
        probe_steps: Steps of the probe that are looked at; as many as a run of this length would have by default.
    """
    return [example(Outcome.load(path), probe_steps) for path in sorted(paths)]


def example(outcome: Outcome, probe_steps: int | None = None) -> Example:
    """One case, with the inputs that a probe in the case would have given."""
    layers = len(outcome.layers) - 1  # the last one is the head
    steps = max(LEAST, probe_length(outcome.case.steps) if probe_steps is None else probe_steps)
    gradients = outcome.tensors["probe_train_gradients"][:steps, :layers]
    cost = [
        flops_when_frozen(outcome.costs, outcome.step, outcome.layers[: depth + 1]).total / outcome.step.total
        for depth in range(layers)
    ]
    weights = outcome.tensors["weights"][0, :layers]
    sizes = torch.tensor(outcome.sizes, dtype=torch.float)
    inputs = start_inputs(gradients, weights, torch.tensor(cost), sizes, outcome.case.steps)
    held = {run.depth: run for run in outcome.runs if run.kind == "frozen" and not run.moment}
    return Example(outcome, inputs, held, steps)


def frontier(outcome: Outcome, cost: float) -> float:
    """Accuracy, in percent, of training everything for a share of the full run, between the recorded ones.

    What is recorded is taken as rising with the cost: where it falls, that is noise. A monotone curve (PCHIP) joins it,
    as a straight line between two runs would flatter whatever is compared with it.

    Args:
        outcome: The case.
        cost: FLOPs relative to the full run; below the shortest recorded one, the frontier is taken as level.
    """
    plain = sorted((outcome.cost(run), run.accuracy) for run in outcome.runs if run.kind != "frozen")
    at, accuracy = (np.array(column) for column in zip(*plain, strict=True))
    curve = PchipInterpolator(at, IsotonicRegression().fit_transform(at, accuracy))
    return float(curve(np.clip(cost, at[0], at[-1])))
