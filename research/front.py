"""What a frozen front costs: step time of everything trains, frozen, and frozen and cached.

    OMP_NUM_THREADS=1 python -m research.front
    python -m research.front --device cuda --pixels 224 --batch 64 --precision bfloat16

The ways take turns, step by step, in one run. Needs the extras ``vision`` and ``text``.
"""

import contextlib
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from research.overhead import minilm
from smartfrz_lightning.benchmark.results import append_result, read_results
from smartfrz_lightning.experiments.networks import vit_32
from smartfrz_lightning.extras import require
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.freezing.front_cache import FrontCache
from smartfrz_lightning.layers.finder import find_layers
from smartfrz_lightning.layers.layer import Layer

BATCHES = 2
"""Batches of data, that come again."""


def _torchvision(name: str) -> nn.Module:
    require("torchvision", "vision")
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10)


def _timm(name: str, **kwargs: Any) -> nn.Module:
    require("timm", "vision")
    import timm

    return timm.create_model(name, num_classes=10, **kwargs)


class Subject(NamedTuple):
    """A network as it is measured.

    Attributes:
        make: Builds it for images of so many pixels along an edge.
        pixels: How many these are; ``None`` where it reads something else.
        batch: Samples a step.
        fixed: Whether it takes no other size.

    Example:
        >>> from smartfrz_lightning.benchmark.front import Subject
        >>> from torch import nn
        >>> Subject(lambda pixels: nn.Conv2d(3, 8, 3), 64, 16).fixed
        False
    """

    make: Callable[[int], nn.Module]
    pixels: int | None
    batch: int
    fixed: bool = False


TOKENS = 48
NETWORKS = {
    "ResNet-18": Subject(lambda _: _torchvision("resnet18"), 64, 16),
    "ResNet-50": Subject(lambda _: _torchvision("resnet50"), 64, 8),
    "EfficientNet-Lite0": Subject(lambda _: _timm("tf_efficientnet_lite0"), 96, 16),
    "DeiT-tiny": Subject(lambda pixels: _timm("deit_tiny_patch16_224", img_size=pixels), 96, 16),
    "ViT 6 x 128": Subject(lambda _: vit_32(), 32, 16, fixed=True),
    "MiniLM": Subject(lambda _: minilm(), None, 16),
}
WAYS = ("everything", "frozen", "cached")


class Way:
    """A network that is trained in one of the ways.

    Args:
        way: One of :data:`WAYS`.
        net: The network.
        layers: Its layers.
        depth: How many of them are frozen.
        precision: Of autocast.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.benchmark.front import Way
        >>> from smartfrz_lightning.layers import find_layers
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> way = Way("cached", net, find_layers(net, torch.rand(2, 4)), depth=1)
        >>> way.step(torch.rand(2, 4), torch.tensor([0, 1])) > 0
        True
    """

    def __init__(
        self, way: str, net: nn.Module, layers: Sequence[Layer], depth: int, precision: torch.dtype | None = None
    ) -> None:
        self._precision = precision
        self.net = net.train()
        self.optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
        frozen = [] if way == "everything" else layers[:depth]
        freeze(net, frozen, [self.optimizer])
        for layer in frozen:
            for name in layer.stateful:
                net.get_submodule(name).training = False
        self._cache = FrontCache(net) if way == "cached" else None
        if self._cache is not None:
            self._cache.watch([name for layer in frozen for name in layer.parameters])

    def step(self, x: Tensor, y: Tensor) -> float:
        """Seconds of one step."""
        _wait(x)
        start = time.perf_counter()
        with self._open():
            self.optimizer.zero_grad()
            self._loss(x, y).backward()
        self.optimizer.step()
        _wait(x)
        return time.perf_counter() - start

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self._precision, enabled=self._precision is not None):
            return F.cross_entropy(self.net(x), y)

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        if self._cache is not None:
            self._cache.open()
        try:
            yield
        finally:
            if self._cache is not None:
                self._cache.close()


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def measure(
    network: str,
    share: float,
    steps: int,
    seed: int,
    device: str = "cpu",
    batch: int | None = None,
    pixels: int | None = None,
    precision: torch.dtype | None = None,
) -> dict[str, list[float]]:
    """Step time of each way, relative to training everything.

    Args:
        network: One of :data:`NETWORKS`.
        share: Of the layers, from the first on, that are frozen.
        steps: Timed steps of each way.
        seed: Of weights and data.
        device: Where.
        batch: Samples a step, in place of the network's.
        pixels: Along an edge, in place of the network's where it takes other sizes.
        precision: Of autocast.
    """
    torch.manual_seed(seed)
    subject = NETWORKS[network]
    size, batch = subject.pixels if subject.fixed or not pixels else pixels, batch or subject.batch
    net = subject.make(size or 0).to(device)
    shape = (batch, 3, size, size) if subject.pixels and size else (batch, TOKENS)
    inputs = [torch.rand(shape) if subject.pixels else torch.randint(1000, shape) for _ in range(BATCHES)]
    data = [(x.to(device), (torch.arange(batch) % 2).to(device)) for x in inputs]
    layers = find_layers(net, data[0][0][:2])
    depth = max(1, round(share * (len(layers) - 1)))
    ways = {way: Way(way, copy.deepcopy(net), layers, depth, precision) for way in WAYS}
    for _ in range(6):  # the cache looks several times at a front that it does not know
        for x, y in data:
            for way in ways.values():
                way.step(x, y)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(steps):
        x, y = data[number % BATCHES]
        for name, way in ways.items():
            seconds[name].append(way.step(x, y))
    whole = statistics.median(seconds["everything"])
    return {name: [statistics.median(seconds[name]) / whole] for name in WAYS} | {"milliseconds": [1000 * whole]}


def main(
    networks: tuple[str, ...] = tuple(NETWORKS),
    shares: tuple[float, ...] = (0.3, 0.6, 0.9),
    steps: int = 24,
    seeds: tuple[int, ...] = (1, 2, 3),
    output: str = "runs/front.jsonl",
    device: str = "cpu",
    batch: int | None = None,
    pixels: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Measure and print a table. Started again, it goes on where it was stopped.

    Args:
        networks: Which.
        shares: Of the layers that are frozen.
        steps: Timed steps of each way.
        seeds: One run each.
        output: JSON lines, one a run.
        device: Where.
        batch: Samples a step, in place of each network's.
        pixels: Along an edge, in place of each network's where it takes other sizes.
        precision: Of autocast.
    """
    mode = None if precision == "float32" else torch.bfloat16
    path = Path(output)
    known = {tuple(result["key"]): result["ways"] for result in read_results(path)}
    settings = (steps, device, batch, pixels, precision)
    cases = [(network, share, seed, *settings) for seed in seeds for network in networks for share in shares]
    with Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as progress:
        for case in progress.track(cases):
            if case not in known:
                known[case] = measure(case[0], case[1], steps, case[2], device, batch, pixels, mode)
                append_result(path, {"key": case, "ways": known[case]})
    about = f"Step time relative to training everything; median of {len(seeds)} seeds (range)"
    table = Table(title=about)
    for head in ("network", "front", "step, ms", *WAYS[1:]):
        table.add_column(head, justify="left" if head == "network" else "right")
    for network in networks:
        for share in shares:
            runs = [known[(network, share, seed, *settings)] for seed in seeds]
            cells = [f"{statistics.median(run['milliseconds'][0] for run in runs):.0f}"]
            for way in WAYS[1:]:
                times = [run[way][0] for run in runs]
                cells.append(f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})")
            table.add_row(network, f"{share:.0%}", *cells)
    Console(width=max(150, Console().width)).print(table)


if __name__ == "__main__":
    auto_cli(main)
