"""What the cache of a frozen front saves: seconds of training, frozen alone and frozen with the cache, side by side.

    OMP_NUM_THREADS=1 python -m research.cached
    python -m research.cached --cases '[ResNet-32]' --seeds '[1]' --device cuda

The two take turns, step by step, on the same batches. A line a case and seed goes to ``research/results/cached.jsonl``;
what is there is not measured again. Needs the extras ``vision`` and ``text``.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from research.outcomes.networks import build
from smartfrz_lightning import StaticFreezeCallback
from smartfrz_lightning.engine import Freezer

EPOCHS = (2, 4, 8, 16)
BATCH = 16


def _images(pixels: int, count: int) -> Tensor:
    return torch.rand(count, 3, pixels, pixels)


def _deit(_: int) -> nn.Module:
    import timm

    return timm.create_model("deit_tiny_patch16_224", num_classes=10, img_size=96)


CASES: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], Tensor], bool]] = {
    "EfficientNet-Lite0": (lambda n: build("tf_efficientnet_lite0", n), lambda count: _images(64, count), False),
    "EfficientNet-Lite0, flips": (lambda n: build("tf_efficientnet_lite0", n), lambda count: _images(64, count), True),
    "ResNet-32": (lambda n: build("resnet32", n), lambda count: _images(32, count), False),
    "ResNet-32, flips": (lambda n: build("resnet32", n), lambda count: _images(32, count), True),
    "MiniLM, 24 tokens": (lambda n: build("minilm", n), lambda count: torch.randint(5, 20000, (count, 24)), False),
    "DeiT-tiny": (_deit, lambda count: _images(96, count), False),
}
"""Networks of random weights and random samples: a step takes as long with others."""


class Run:
    """A training in which the first layers are frozen.

    Args:
        net: The network.
        cache: Whether what they give is cached.
        layers: Share of the layers that is frozen.
        batches: Batches an epoch.
        epochs: Of the training.
    """

    def __init__(self, net: nn.Module, cache: bool, layers: float, batches: int, epochs: int) -> None:
        self.net, self.seconds = net.train(), 0.0
        self._optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        method = StaticFreezeCallback(layers, cache_front=cache)
        self.freezer = Freezer(net, self._optimizer, method, batches, batches * epochs)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step."""
        start = time.perf_counter()
        with self.freezer.batch((x, y)):
            self._optimizer.zero_grad()
            F.cross_entropy(self.net(x), y).backward()
            self._optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start

    def end_epoch(self) -> None:
        """An epoch is over."""
        start = time.perf_counter()
        self.freezer.end_epoch()
        self.seconds += time.perf_counter() - start


def measure(name: str, seed: int, layers: float, samples: int, device: str) -> dict:
    """Train one case in both ways; seconds after each of ``EPOCHS``.

    Args:
        name: One of ``CASES``.
        seed: Of weights, samples, order and flips.
        layers: Share of the layers that is frozen.
        samples: Of which an epoch consists.
        device: Where it trains.
    """
    make, draw, flips = CASES[name]
    torch.manual_seed(seed)
    data, labels = draw(samples).to(device), (torch.arange(samples) % 2).to(device)
    runs = []
    for cache in (False, True):
        torch.manual_seed(seed)
        runs.append(Run(make(2).to(device), cache, layers, samples // BATCH, EPOCHS[-1]))
    seconds: list[list[float]] = []
    for epoch in range(EPOCHS[-1]):
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(BATCH):
            x = data[index]
            if flips:
                x = torch.where((torch.rand(len(x), device=device) < 0.5)[:, None, None, None], x.flip(3), x)
            for run in runs:
                run.step(x, labels[index])
        for run in runs:
            run.end_epoch()
        if epoch + 1 in EPOCHS:
            seconds.append([round(run.seconds, 3) for run in runs])
    use = runs[1].freezer.timeline.cache
    assert use is not None
    for run in runs:
        run.freezer.end()
    about = {"case": name, "seed": seed, "layers": layers, "samples": samples, "device": device}
    return {**about, "seconds": seconds, "gigabytes": use.gigabytes, "ends": use.ends, "stopped": use.stopped}


def main(
    cases: Sequence[str] = tuple(CASES),
    seeds: Sequence[int] = (1, 2, 3),
    layers: float = 0.6,
    samples: int = 640,
    device: str = "cpu",
    output: str = "research/results/cached.jsonl",
) -> None:
    """Measure, and print time with the cache relative to time without.

    Args:
        cases: Names of cases.
        seeds: Of each.
        layers: Share of the layers that is frozen.
        samples: Of which an epoch consists.
        device: Where they train.
        output: File of the results.
    """
    torch.set_num_threads(1)
    path = Path(output)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["case"], row["seed"], row["device"]) for row in rows}
    to_do = [(name, seed) for seed in seeds for name in cases if (name, seed, device) not in done]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        for name, seed in progress.track(to_do, description="cases"):
            rows.append(measure(name, seed, layers, samples, device))
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    table = Table(title="time with the cache, relative to frozen alone", box=SIMPLE_HEAD)
    for column in ("", *(f"{epochs} epochs" for epochs in EPOCHS), "GB"):
        table.add_column(column)
    for name in cases:
        of_case = [row for row in rows if row["case"] == name and row["device"] == device]
        ratio = np.array([[cached / frozen for frozen, cached in row["seconds"]] for row in of_case])
        spread = ratio.std(0, ddof=1) if len(ratio) > 1 else ratio[0] * 0
        shown = [f"{mean:.2f} ± {half:.2f}" for mean, half in zip(ratio.mean(0), spread, strict=True)]
        table.add_row(name, *shown, f"{of_case[0]['gigabytes']:.3f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    auto_cli(main)
