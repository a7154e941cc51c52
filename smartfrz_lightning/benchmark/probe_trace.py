"""What a probe leaves behind: runs without one, and after one whose traces are put back or kept.

    python -m smartfrz_lightning.benchmark.probe_trace data data/weights

In a probe the head alone moves, for some steps. Then the run goes on, with everything released or with a front held.
Head, optimizer and statistics are as they were before, or the head is kept as trained, with its optimizer state, with
the statistics of before or those that moved meanwhile. Needs the extra ``vision``.
"""

import copy
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from smartfrz_lightning.benchmark.results import append_result, read_results
from smartfrz_lightning.benchmark.table import margin
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.layers.tracer import find_layers
from smartfrz_lightning.outcomes.case import Case
from smartfrz_lightning.outcomes.networks import build, image_size, normalisation
from smartfrz_lightning.outcomes.tasks import Images, image_task
from smartfrz_lightning.outcomes.training import Moment, batch_at, evaluate, learning_rate, make_optimizer, train

TRACES = ("none", "put back", "head kept", "head and statistics kept", "head kept, probed in eval mode")
"""No probe, and what is left of one."""

_RESNET = {"network": "resnet20", "weights": "resnet20_cifar10", "data": "cifar100", "images": 2000}
_EFFNET = {"network": "tf_efficientnet_lite0", "weights": "tf_efficientnet_lite0", "data": "cifar10", "images": 2000}
_HOW = {"shift": "none", "flips": True, "schedule": "cosine", "batch_size": 16}
CASES: dict[str, dict[str, Any]] = {
    "ResNet-20, SGD 0.02": {**_RESNET, **_HOW, "optimizer": "sgd", "rate": 0.02, "steps": 200},
    "ResNet-20, SGD 0.05": {**_RESNET, **_HOW, "optimizer": "sgd", "rate": 0.05, "steps": 200},
    "ResNet-20, AdamW 0.001": {**_RESNET, **_HOW, "optimizer": "adamw", "rate": 0.001, "steps": 200},
    "EfficientNet-Lite0, SGD 0.02": {**_EFFNET, **_HOW, "optimizer": "sgd", "rate": 0.02, "steps": 150},
}


def probed(case: Case, net: nn.Module, layers: Sequence[Layer], data: Images, steps: int, trace: str) -> Moment:
    """The training as it stands after a probe.

    Args:
        case: The case.
        net: The network as it came; it is changed.
        layers: Its layers; the last is the head.
        data: Images and labels.
        steps: Length of the probe.
        trace: One of :data:`TRACES` but the first.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.benchmark.probe_trace import probed
        >>> from smartfrz_lightning.layers import find_layers
        >>> from smartfrz_lightning.outcomes.case import Case
        >>> from smartfrz_lightning.outcomes.networks import build
        >>> case = Case("vgg8", "", "own", (0, 1), 8, "none", True, "sgd", 0.02, "cosine", 4, 4, 1)
        >>> net, data = build("vgg8", 2), (torch.rand(8, 3, 32, 32), torch.arange(8) % 2)
        >>> layers = find_layers(net, data[0][:2])
        >>> moments = [probed(case, net, layers, data, 2, trace) for trace in ("put back", "head kept")]
        >>> moments[0].network["27.weight"].equal(moments[1].network["27.weight"]), moments[0].step
        (False, 2)
    """
    start = copy.deepcopy(net.state_dict())
    net.train(trace != "head kept, probed in eval mode")
    optimizer = make_optimizer(case, net.parameters())
    fresh = copy.deepcopy(optimizer.state_dict())
    head = set(layers[-1].parameters)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(case, step, case.steps)
        x, y = batch_at(case, data, step)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        for name, parameter in net.named_parameters():
            if name not in head:
                parameter.grad = None
        optimizer.step()
    after = copy.deepcopy(net.state_dict())
    if trace == "put back":
        return Moment(steps, start, fresh)
    kept = after if trace == "head and statistics kept" else {**start, **{name: after[name] for name in head}}
    return Moment(steps, kept, copy.deepcopy(optimizer.state_dict()))


def main(
    data: str,
    weights: str,
    cases: tuple[str, ...] = tuple(CASES),
    probes: tuple[float, ...] = (0.02, 0.15),
    depths: tuple[float, ...] = (0.0, 0.6),
    seeds: tuple[int, ...] = (1, 2, 3),
    output: str = "runs/probe_trace.jsonl",
) -> None:
    """Measure and print a table. Started again, it goes on where it was stopped.

    Args:
        data: Folder with ``cifar10`` and ``cifar100``.
        weights: Folder of the networks' weights.
        cases: Which.
        probes: Lengths of the probe, as shares of the run.
        depths: Shares of the layers before the head that are held after it.
        seeds: One run each.
        output: JSON lines, one a run.
    """
    torch.set_num_threads(1)
    path = Path(output)
    known = {tuple(result["key"]): result["accuracy"] for result in read_results(path)}
    runs = [(name, seed) for seed in seeds for name in cases]
    with Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as progress:
        for name, seed in progress.track(runs):
            case = Case(**CASES[name], classes=tuple(range(10)), seed=seed)
            sets: tuple[Images, Images] | None = None
            for depth in depths:
                for probe, trace in [(0.0, "none"), *((p, t) for p in probes for t in TRACES[1:])]:
                    key = (name, depth, probe, trace, seed)
                    if key in known:
                        continue
                    sets = sets or image_task(case, data, *normalisation(case.network), image_size(case.network))
                    torch.manual_seed(seed)
                    net = build(case.network, 10, Path(weights) / f"{case.weights}.safetensors")
                    layers = find_layers(net, sets[0][0][:2])
                    steps = max(2, round(probe * case.steps))
                    moment = probed(case, net, layers, sets[0], steps, trace) if trace != "none" else None
                    front = layers[: round(depth * (len(layers) - 1))]
                    train(case, net, sets[0], front=front, moment=moment, settle=False)
                    known[key] = evaluate(net, sets[1])["accuracy"]
                    append_result(path, {"key": key, "accuracy": known[key]})
    table = Table(title=f"Accuracy after a probe, against the same run without one; {len(seeds)} seeds, 95 %")
    for head in ("case", "held", "no probe", "probe", *TRACES[1:]):
        table.add_column(head, justify="left" if head == "case" else "right")
    for name in cases:
        for depth in depths:
            whole = [known[name, depth, 0.0, "none", seed] for seed in seeds]
            for probe in probes:
                cells = []
                for trace in TRACES[1:]:
                    gains = [known[name, depth, probe, trace, s] - w for s, w in zip(seeds, whole, strict=True)]
                    cells.append(f"{statistics.fmean(gains):+.1f} ± {margin(gains):.1f}")
                table.add_row(name, f"{depth:.0%}", f"{statistics.fmean(whole):.1f}", f"{probe:.0%}", *cells)
    Console(width=max(140, Console().width)).print(table)


if __name__ == "__main__":
    auto_cli(main)
