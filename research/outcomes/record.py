"""Record one case: everything trains, for less time, and with fronts that freeze at several moments."""

import copy
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from research.outcomes.case import Case
from research.outcomes.outcome import Outcome, Run
from research.outcomes.probe import probe_gradients
from research.outcomes.setup import set_up
from research.outcomes.training import evaluate, train
from smartfrz_lightning.cost import ForwardFlops, step_cost
from smartfrz_lightning.history.sampling import WeightSampler

DEPTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the fronts, as shares of the layers before the head."""

MOMENTS = (0.03, 0.1, 0.25, 0.5)
"""When a front freezes that is not held, as shares of the run."""

SHORTENED = (0.15, 0.3, 0.5, 0.7, 0.85)
"""Lengths of the shortened runs."""

PROBE_STEPS, SNAPSHOTS = 30, 60


def record_case(
    case: Case, data: str | Path, weights: str | Path, depths: Sequence[float] = DEPTHS, device: str = "cpu"
) -> Outcome:
    """Train a case in all ways.

    Args:
        case: The case.
        data: Folder of the images, see :func:`~research.outcomes.tasks.image_task`.
        weights: Folder of ``<case.weights>.safetensors``, or of the folder ``<case.weights>``.
        depths: Shares of the layers before the head that freeze.
        device: Where it trains.
    """
    setup = set_up(case, data, weights, device)
    net, layers, train_set, validation = setup.net, setup.layers, setup.data, setup.validation
    start = copy.deepcopy(net.state_dict())

    sampler, snapshots = WeightSampler(net, layers), []
    norms = [_norm(net, layer.weights) for layer in layers]
    due = {round(number * case.steps / SNAPSHOTS) for number in range(SNAPSHOTS + 1)}

    def watch(steps: int) -> None:
        if steps in due:
            snapshots.append((steps, sampler(torch.empty(len(layers), sampler.sample_size, device=device)).cpu()))

    def finished(kind: str, steps: int, depth: int = 0, moment: int = 0) -> Run:
        judged = evaluate(net, validation)
        return Run(kind, judged["loss"], judged["accuracy"], steps, depth, moment)

    tensors = {"weight_norms": torch.tensor(norms)}
    for mode in ("train", "eval"):
        gradients = probe_gradients(case, net, layers, train_set, PROBE_STEPS, train_statistics=mode == "train")
        tensors |= {f"probe_{mode}_{name}": tensor for name, tensor in gradients.items()}
        net.load_state_dict(start)
    net.zero_grad()
    net.train()
    x = train_set[0][: case.batch_size]
    counter = ForwardFlops(net)
    counter.start()
    net(x)
    counter.stop()
    cost = step_cost(net, layers, counter.segments)
    net.load_state_dict(start)

    moments = sorted({max(1, round(share * case.steps)) for share in MOMENTS}) if case.later else []
    kept = train(case, net, train_set, keep=moments, watch=watch)
    runs = [finished("full", case.steps)]
    for share in SHORTENED:
        net.load_state_dict(start)
        steps = max(1, round(share * case.steps))
        train(case, net, train_set, steps)
        runs.append(finished("shortened", steps))
    fronts = sorted({max(1, round(share * (len(layers) - 1))) for share in depths})
    for depth in fronts:
        net.load_state_dict(start)
        train(case, net, train_set, front=layers[:depth])
        runs.append(finished("frozen", case.steps, depth))
        for moment in kept:
            train(case, net, train_set, front=layers[:depth], moment=moment)
            runs.append(finished("frozen", case.steps, depth, moment.step))
    tensors["weights"] = torch.stack([snapshot for _, snapshot in snapshots])
    tensors["weights_step"] = torch.tensor([step for step, _ in snapshots])
    names, sizes = [layer.name for layer in layers], [layer.size for layer in layers]
    return Outcome(case, names, sizes, cost.layers, cost.full, runs, tensors)


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


def record_to(case: Case, data: str, weights: str, output: str, device: str = "cpu") -> str:
    """Train a case in all ways, write its file, and say in a line what came out.

    Args:
        case: The case.
        data: Folder of the data.
        weights: Folder of the weights.
        output: Folder of the file.
        device: Where it trains.
    """
    if outcome_path(output, case).exists():
        return "recorded meanwhile, by somebody else"
    began = time.perf_counter()
    outcome = record_case(case, data, weights, device=device)
    outcome.save(outcome_path(output, case))
    best = max((run for run in outcome.runs if run.kind == "frozen"), key=lambda run: run.accuracy)
    return (
        f"full {outcome.full.accuracy:.1f} %, best front {best.depth}/{len(outcome.layers)} from step {best.moment} on "
        f"{best.accuracy:.1f} %, {time.perf_counter() - began:.0f} s"
    )


def _norm(net: torch.nn.Module, names: Sequence[str]) -> float:
    return float(sum(net.get_parameter(name).detach().square().sum() for name in names)) ** 0.5
