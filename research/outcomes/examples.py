"""Examples: recorded cases as the start predictor sees them, with what became of each front that was held."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from research.outcomes.outcome import Outcome, Run
from smartfrz_lightning.extras import require
from smartfrz_lightning.predictor.start import INPUTS, start_inputs
from smartfrz_lightning.stages.start import LEAST, probe_length

require("sklearn", "vision")

from scipy.interpolate import PchipInterpolator  # noqa: E402
from sklearn.isotonic import IsotonicRegression  # noqa: E402

STORED = (
    "depth", "depth_squared", "body", "front_to_all", "largest_to_all", "front", "front_agrees", "back_agrees", "cost",
    "left", "steps", "shift",
)  # fmt: skip
"""Inputs in the files of version 0.2.0."""


@dataclass
class Example:
    """One case.

    Attributes:
        outcome: The case.
        inputs: ``[fronts, inputs]`` of ``start_inputs``: every front.
        drift: ``[layers]``: the norm of each layer's mean gradient in the probe, estimated without bias from products
            of different batches, over the norm of its weights. Without the head, as are the others.
        fisher: ``[layers]``: the mean square of its gradients in the probe.
        probe_steps: How many steps of the probe were looked at.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> one = load_examples("research/results/held_out.jsonl")[0]
        >>> len(one.held), one.inputs.shape == (len(one.outcome.layers) - 1, 5)
        (5, True)
    """

    outcome: Outcome
    inputs: Tensor
    drift: Tensor
    fisher: Tensor
    probe_steps: int

    @property
    def held(self) -> dict[int, Run]:
        """The runs in which a front was held from the start, by depth."""
        return {run.depth: run for run in self.outcome.runs if run.kind == "frozen" and not run.moment}

    def gain(self, run: Run) -> float:
        """Points of accuracy above full training."""
        return run.accuracy - self.outcome.full.accuracy

    def above(self, run: Run) -> float:
        """Points of accuracy above plain training that is shortened to the same FLOPs."""
        return run.accuracy - frontier(self.outcome, self.outcome.cost(run))

    @property
    def family(self) -> str:
        """The network, and whether it was pretrained."""
        return self.outcome.case.network + ("" if self.outcome.case.weights else ", from scratch")

    def asdict(self) -> dict[str, Any]:
        """As JSON can hold it: some 10 kB where the gradients and weights are 10 MB."""
        tensors = {name: _round(getattr(self, name)) for name in ("inputs", "drift", "fisher")}
        return {**self.outcome.asdict(), **tensors, "probe_steps": self.probe_steps}

    @classmethod
    def fromdict(cls, about: dict[str, Any]) -> "Example":
        """The example that ``asdict`` described; its outcome has no tensors."""
        tensors = {name: torch.tensor(about[name]) for name in ("inputs", "drift", "fisher")}
        if tensors["inputs"].shape[1] == len(STORED):
            tensors["inputs"] = tensors["inputs"][:, [STORED.index(name) for name in INPUTS]]
        return cls(Outcome.fromdict(about), **tensors, probe_steps=about["probe_steps"])


def load_examples(source: str | Path, probe_steps: int | None = None) -> list[Example]:
    """Read recorded cases.

    Args:
        source: A folder of recorded cases, or a file with a line a case, such as those in research/results.
        probe_steps: Steps of the probe that are looked at; as many as a run of this length would have by default.

    Raises:
        FileNotFoundError: There is no case.
        ValueError: ``probe_steps`` of a condensed file, which does not hold the probes.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> "resnet32" in {one.family for one in load_examples("research/results/held_out.jsonl")}
        True
    """
    source = Path(source)
    if source.suffix == ".jsonl" and source.is_file():
        if probe_steps is not None:
            raise ValueError(f"probe_steps={probe_steps}: {str(source)!r} is condensed and does not hold the probes")
        return [Example.fromdict(json.loads(line)) for line in source.read_text().splitlines()]
    examples = [example(Outcome.load(path), probe_steps) for path in sorted(source.glob("*.safetensors"))]
    if not examples:
        raise FileNotFoundError(f"no case is recorded in {str(source)!r}")
    return examples


def example(outcome: Outcome, probe_steps: int | None = None) -> Example:
    """One case, with the inputs that a probe in the case would have given.

    Args:
        outcome: The case, with its tensors.
        probe_steps: Steps of the probe that are looked at; as many as a run of this length would have by default.

    Example:
        >>> import torch
        >>> from research.outcomes.examples import example, load_examples
        >>> outcome = load_examples("research/results/held_out.jsonl")[0].outcome
        >>> probe = torch.randn(30, len(outcome.layers), 16)
        >>> outcome.tensors = {"probe_train_gradients": probe, "weights": torch.ones_like(probe)}
        >>> example(outcome, probe_steps=4).inputs.shape == (len(outcome.layers) - 1, 5)
        True
    """
    layers = len(outcome.layers) - 1  # the last one is the head
    steps = max(LEAST, probe_length(outcome.case.steps) if probe_steps is None else probe_steps)
    gradients = outcome.tensors["probe_train_gradients"][:steps, :layers]
    weights = outcome.tensors["weights"][0, :layers]
    sizes = torch.tensor(outcome.sizes, dtype=torch.float)
    shifts = outcome.tensors.get("probe_train_shift")
    shift = float(shifts[steps - 1]) if shifts is not None else 0.0
    inputs = start_inputs(gradients, weights, sizes, shift)
    count, squares = len(gradients), gradients.double().square().sum(-1)
    products = gradients.double().sum(0).square().sum(-1) - squares.sum(0)
    drift = (products / (count * (count - 1))).clamp(min=0).sqrt() / torch.linalg.norm(weights.double(), dim=-1)
    norms = outcome.tensors.get("probe_train_norms")
    if norms is None:
        norms = outcome.tensors["probe_train_gradients"].norm(dim=-1)
    fisher = norms[:steps, :layers].double().square().mean(0)
    return Example(outcome, inputs, drift.float(), fisher.float(), steps)


def _round(values: Tensor) -> list:
    """Six digits."""
    if values.dim() > 1:
        return [_round(row) for row in values]
    return [float(f"{value:.6g}") for value in values.tolist()]


def frontier(outcome: Outcome, cost: float) -> float:
    """Accuracy, in percent, of training everything for a share of the full run, between the recorded ones.

    What is recorded is taken as rising with the cost: where it falls, that is noise. A monotone curve (PCHIP) joins it,
    as a straight line between two runs would flatter whatever is compared with it.

    Args:
        outcome: The case.
        cost: FLOPs relative to the full run; below the shortest recorded one, the frontier is taken as level.

    Example:
        >>> from research.outcomes.examples import frontier, load_examples
        >>> outcome = load_examples("research/results/held_out.jsonl")[0].outcome
        >>> frontier(outcome, 0.3) <= frontier(outcome, 1.0)
        True
    """
    plain = sorted((outcome.cost(run), run.accuracy) for run in outcome.runs if run.kind != "frozen")
    at, accuracy = (np.array(column) for column in zip(*plain, strict=True))
    curve = PchipInterpolator(at, IsotonicRegression().fit_transform(at, accuracy))
    return float(curve(np.clip(cost, at[0], at[-1])))
