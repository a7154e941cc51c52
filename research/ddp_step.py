"""What a step under DDP costs before and after freezing: all-reduced bytes and seconds, measured side by side.

    torchrun --standalone --nproc_per_node 2 -m research.ddp_step --model resnet50

Needs the extra ``vision``. Every repetition is one fit that goes through all states in turn.
"""

import os
import statistics
import sys
import time
from typing import Any

import timm
import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.experiments.classifier import ImageClassifier

STATES = {"everything trains": 0.0, "front half frozen": 0.5, "front 80 % frozen": 0.8, "only the head trains": 1.0}
SETTLE = 3  # steps of a state that are not timed: the wrapper is new, buckets are laid out anew, FLOPs are counted


class FrontInTurn(FreezingCallback):
    """Freezes the shares of ``STATES`` from the front, each after ``steps`` optimizer steps.

    Example:
        >>> import torch
        >>> from research.ddp_step import FrontInTurn
        >>> from smartfrz_lightning.engine import TrainingRun
        >>> from smartfrz_lightning.layers import Layer
        >>> layers = [Layer(name, (), (), (), 1) for name in "abcd"]
        >>> run = TrainingRun(torch.nn.Identity(), layers=layers, global_steps=5)
        >>> list(FrontInTurn(steps=5).select(run))
        ['a', 'b']
    """

    def __init__(self, steps: int) -> None:
        super().__init__(every_n_train_steps=steps)
        self.steps = steps

    def select(self, run: TrainingRun) -> dict[str, float]:
        state = min(run.global_steps // self.steps, len(STATES) - 1)
        free = [layer for layer in run.layers if not layer.always_trains]
        share = list(STATES.values())[state]
        return {layer.name: 1.0 for layer in free[: round(share * len(free))]}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """No report: the table below is the result."""


class CommunicationMeter(Callback):
    """Bytes that every step all-reduces, by a communication hook, and its seconds.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> from research.ddp_step import CommunicationMeter
        >>> meter = CommunicationMeter()
        >>> meter.on_train_batch_start(None, LightningModule(), None, 0)
        >>> meter.on_train_batch_end(None, LightningModule(), None, None, 0)
        >>> meter.bytes, len(meter.seconds)  # one step, in which nothing was all-reduced
        ([0], 1)
    """

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.seconds: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wrapper = trainer.strategy.model
        assert isinstance(wrapper, DistributedDataParallel)
        wrapper.register_comm_hook(None, self._count)

    def _count(self, state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.bytes[-1] += bucket.buffer().nbytes
        world = torch.distributed.group.WORLD
        assert world is not None, "only under DDP"
        return allreduce_hook(world, bucket)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.bytes.append(0)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._started)


def main(model: str = "resnet50", image_size: int = 64, batch_size: int = 8, steps: int = 15, seeds: int = 3) -> None:
    """Measure and print a table.

    Args:
        model: Any model of timm, by name.
        image_size: Height and width of the random images.
        batch_size: Images a step in every process.
        steps: Optimizer steps in every state, of which the first three are not timed.
        seeds: Repetitions.
    """
    if "WORLD_SIZE" not in os.environ:
        sys.exit("start it with torchrun --standalone --nproc_per_node 2 -m research.ddp_step")
    if steps <= SETTLE or seeds < 1:
        sys.exit(f"steps={steps} and seeds={seeds}: give more than {SETTLE} steps and at least one seed")
    processes, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    measured: dict[str, list[tuple[float, float]]] = {state: [] for state in STATES}
    total = len(STATES) * steps
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        for seed in progress.track(range(seeds), description=f"{model}, {seeds} repetitions"):
            torch.manual_seed(seed)
            images = torch.rand(batch_size, 3, image_size, image_size)
            once = TensorDataset(images, torch.randint(10, (batch_size,)))
            data = ConcatDataset([once] * processes * total)
            meter = CommunicationMeter()
            trainer = Trainer(
                strategy=DDPStrategy(),
                devices=here,
                num_nodes=processes // here,
                max_steps=total,
                callbacks=[meter, FrontInTurn(steps)],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(ImageClassifier(timm.create_model(model, num_classes=10)), DataLoader(data, batch_size))
            for number, state in enumerate(STATES):
                timed = slice(number * steps + SETTLE, (number + 1) * steps)
                measured[state].append((meter.bytes[timed][0], statistics.median(meter.seconds[timed])))
    if trainer.is_global_zero:
        _print(model, measured, processes)


def _print(model: str, measured: dict[str, list[tuple[float, float]]], processes: int) -> None:
    table = Table(title=f"{model} under DDP in {processes} processes, {torch.get_num_threads()} threads each")
    for head in ("", "all-reduced, MB a step", "step, s ± sd", "bytes relative", "step relative ± sd"):
        table.add_column(head, justify="right" if head else "left")
    first = next(iter(measured.values()))
    for state, runs in measured.items():
        seconds = [run[1] for run in runs]
        relative = [run[1] / full[1] for run, full in zip(runs, first, strict=True)]
        table.add_row(
            state,
            f"{runs[0][0] / 1e6:.1f}",
            f"{statistics.fmean(seconds):.3f} ± {_sd(seconds):.3f}",
            f"{runs[0][0] / first[0][0]:.2f}",
            f"{statistics.fmean(relative):.2f} ± {_sd(relative):.2f}",
        )
    Console().print(table)


def _sd(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    auto_cli(main)
