"""Record one case: everything trains, for less time, and with fronts that freeze at several moments."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from research.outcomes.case import Case
from research.outcomes.outcome import Outcome, Run
from research.outcomes.probe import probe_gradients
from research.outcomes.setup import set_up
from research.outcomes.training import Moment, evaluate, train
from smartfrz_lightning.cost.forward import ForwardFlops
from smartfrz_lightning.cost.step_cost import step_cost
from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.layers.layer import Layer

DEPTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the fronts, as shares of the layers before the head."""

MOMENTS = (0.1, 0.25, 0.45, 0.65)
"""When a prefix is frozen, besides the start, as shares of the run."""

SHORTENED = (0.3, 0.5, 0.7, 0.85)
"""Lengths of the shortened runs."""

PROBE_STEPS, SNAPSHOTS, SAMPLE_SIZE = 30, 120, 64


def record_case(
    case: Case,
    data: str | Path,
    weights: str | Path,
    depths: Sequence[float] = DEPTHS,
    later: Sequence[float] = MOMENTS,
    shortened: Sequence[float] = SHORTENED,
    device: str = "cpu",
) -> Outcome:
    """Train a case in all ways.

    Args:
        case: The case.
        data: Folder of the images, see ``image_task``.
        weights: Folder of ``<case.weights>.safetensors``, or of the folder ``<case.weights>``.
        depths: Shares of the layers before the head that freeze.
        later: Shares of the run at which they do, besides the start.
        shortened: Lengths of the shortened runs, as shares.
        device: Where it trains.
    """
    setup = set_up(case, data, weights, device)
    net, layers, train_set, validation = setup.net, setup.layers, setup.data, setup.validation
    start = copy.deepcopy(net.state_dict())
    history = History(case, net, layers)
    losses: list[Tensor] = []

    def trained(kind: str, **how: Any) -> Run:
        moment = how.get("moment")
        begin, steps, front = moment.step if moment else 0, how.get("steps", case.steps), how.get("front", ())
        net.load_state_dict(start)
        of_steps: list[float] = []
        kept.extend(train(case, net, train_set, losses=of_steps, **how))
        missing = [math.nan] * begin, [math.nan] * (case.steps - steps)
        losses.append(torch.tensor([*missing[0], *of_steps, *missing[1]]))
        judged = evaluate(net, validation)
        return Run(kind, judged["loss"], judged["accuracy"], steps, len(front), begin)

    gradients = probe_gradients(case, net, layers, train_set, PROBE_STEPS, True, SAMPLE_SIZE)
    tensors = {f"probe_train_{name}": tensor for name, tensor in gradients.items()}
    net.zero_grad()
    net.train()
    counter = ForwardFlops(net)
    counter.start()
    net(train_set[0][: case.batch_size])
    counter.stop()
    cost = step_cost(layers, counter.parameters, counter.products)

    kept: list[Moment] = []
    moments = sorted({max(1, round(share * case.steps)) for share in later}) if case.later else []
    runs = [trained("full", keep=moments, watch=history)]
    branches = [None, *kept]
    runs += [trained("shortened", steps=max(1, round(share * case.steps))) for share in shortened]
    for depth in sorted({max(1, round(share * (len(layers) - 1))) for share in depths}):
        runs += [trained("frozen", front=layers[:depth], moment=moment) for moment in branches]
    tensors |= {"losses": torch.stack(losses), **history.tensors()}
    names, sizes = [layer.name for layer in layers], [layer.size for layer in layers]
    return Outcome(case, names, sizes, cost, runs, tensors)


class History:
    """What the layers show while a run trains: called with the number of steps done, before the first and after each.

    Args:
        case: The case.
        net: The network.
        layers: Its layers.
    """

    def __init__(self, case: Case, net: nn.Module, layers: Sequence[Layer]) -> None:
        self._net, self._layers = net, layers
        self._sampler = WeightSampler(net, layers, SAMPLE_SIZE)
        self._due = {round(number * case.steps / SNAPSHOTS) for number in range(SNAPSHOTS + 1)}
        self._rows: dict[str, list[Tensor]] = {
            name: [] for name in ("weights", "gradients", "weight_norms", "gradient_norms")
        }
        self._steps: list[int] = []

    def __call__(self, steps: int) -> None:
        if steps not in self._due:
            return
        out = torch.empty(len(self._layers), SAMPLE_SIZE, device=next(self._net.parameters()).device)
        self._steps.append(steps)
        self._rows["weights"].append(self._sampler(out).cpu().clone())
        self._rows["gradients"].append(self._sampler.gradients(out).cpu().clone())
        self._rows["weight_norms"].append(self._norms(lambda weight: weight.detach()))
        self._rows["gradient_norms"].append(self._norms(lambda weight: weight.grad))

    def _norms(self, of: Callable[[Tensor], Tensor | None]) -> Tensor:
        parts = [[of(self._net.get_parameter(name)) for name in layer.weights] for layer in self._layers]
        norms = [[part.norm() for part in layer if part is not None] for layer in parts]
        return torch.tensor([float(torch.stack(layer).norm()) if layer else 0.0 for layer in norms])

    def tensors(self) -> dict[str, Tensor]:
        """All of it, a row a snapshot."""
        rows = {name: torch.stack(rows) for name, rows in self._rows.items()}
        return {**rows, "weights_step": torch.tensor(self._steps)}


def outcome_path(output: str | Path, case: Case) -> Path:
    """The file of a case.

    Example:
        >>> from research.outcomes.case import Case
        >>> from research.outcomes.record import outcome_path
        >>> case = Case("vgg8", "", "own", (0, 1), 8, "none", True, "sgd", 0.02, "cosine", 4, 4, 1)
        >>> outcome_path("runs", case).suffix
        '.safetensors'
    """
    return Path(output) / f"{case.name}.safetensors"


def record_to(case: Case, data: str, weights: str, output: str, **how: Any) -> str:
    """Train a case in all ways, write its file, and say in a line what came out.

    Args:
        case: The case.
        data: Folder of the data.
        weights: Folder of the weights.
        output: Folder of the file.
        how: Depths, moments, lengths and device, of ``record_case``.
    """
    if outcome_path(output, case).exists():
        return "recorded meanwhile, by somebody else"
    began = time.perf_counter()
    outcome = record_case(case, data, weights, **how)
    outcome.save(outcome_path(output, case))
    best = max((run for run in outcome.runs if run.kind == "frozen"), key=lambda run: run.accuracy)
    return (
        f"full {outcome.full.accuracy:.1f} %, best front {best.depth}/{len(outcome.layers)} from step {best.moment} on "
        f"{best.accuracy:.1f} %, {time.perf_counter() - began:.0f} s"
    )
