"""What the callback costs: fits with and without it in turn, and the seconds that each part of it takes.

    python -m research.overhead

Nothing freezes in these fits (the threshold is out of reach), so whatever they take longer is what the callback costs.
Everything is on as by default: the weight history, the checks, the progress bar, a logger, the report, the picture.
Needs the extras ``vision`` and ``text``.
"""

import contextlib
import gc
import logging
import os
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from smartfrz_lightning import AttentionFreezeCallback
from smartfrz_lightning.experiments.networks import CifarResNet, vgg8, vit_32
from smartfrz_lightning.extras import require

OUT_OF_REACH = 1 - 1e-9
PARTS = ("start", "steps", "checks", "end")


class Logits(nn.Module):
    """A sequence classifier of ``transformers`` as a plain network: token ids in, logits out.

    Example:
        >>> import torch
        >>> from research.overhead import minilm
        >>> minilm(layers=1)(torch.ones(2, 8, dtype=torch.long)).shape
        torch.Size([2, 2])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[batch, classes]`` of token ids ``[batch, tokens]``."""
        return self.network(ids).logits


def minilm(layers: int = 6) -> Logits:
    """BERT of the size of all-MiniLM-L6-v2, with random weights.

    Example:
        >>> from research.overhead import minilm
        >>> round(sum(parameter.numel() for parameter in minilm().parameters()) / 1e6, 1)
        22.7
    """
    require("transformers", "text")
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=layers)
    return Logits(BertForSequenceClassification(config))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # with the images or sentences of a batch
    "small CNN": (lambda: vgg8(width=8), 32),
    "ResNet-20, narrow, batch 8": (lambda: CifarResNet(width=8), 8),
    "ResNet-20": (CifarResNet, 32),
    "ViT, 6 x 128": (vit_32, 32),
    "MiniLM": (minilm, 8),
}


class Plain(LightningModule):
    """Classifies random data; logs its loss in the progress bar, as most modules do.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from research.overhead import Plain
        >>> len(Plain(nn.Flatten(), inputs=torch.rand(64, 3, 2, 2), batch_size=16).train_dataloader())
        4
    """

    def __init__(self, network: nn.Module, inputs: Tensor, batch_size: int) -> None:
        super().__init__()
        self.network, self.batch_size = network, batch_size
        self.data = TensorDataset(inputs, torch.arange(len(inputs)) % 2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(self.network(inputs), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, self.batch_size)


class StepClock(Callback):
    """Seconds from one training step's beginning to the next one's, of all steps but each epoch's last.

    Example:
        >>> from research.overhead import StepClock
        >>> clock = StepClock()
        >>> for number in range(3):
        ...     clock.on_train_batch_start(None, None, None, number)
        >>> len(clock.seconds)
        2
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if batch_idx:
            self.seconds.append(now - self._began)
        self._began = now


class HookClock:
    """Times every hook of a callback, and says at which training step it was called.

    Example:
        >>> from lightning.pytorch import Callback
        >>> from research.overhead import HookClock
        >>> callback = Callback()
        >>> clock = HookClock(callback)
        >>> callback.on_train_start(None, None)
        >>> list(clock.seconds)
        [('on_train_start', -1)]
    """

    def __init__(self, callback: Callback) -> None:
        self.seconds: dict[tuple[str, int], float] = defaultdict(float)
        self._step = -1
        for name in dir(callback):
            if name.startswith("on_") or name in ("setup", "teardown"):
                setattr(callback, name, self._timed(name, getattr(callback, name)))

    def _timed(self, name: str, hook: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._step += name == "on_train_batch_start"
            start = time.perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                self.seconds[name, self._step] += time.perf_counter() - start

        return timed

    def of_step(self) -> list[float]:
        """Seconds of all hooks of each training step."""
        steps = [0.0] * (self._step + 1)
        for (name, step), seconds in self.seconds.items():
            if name in _STEP_HOOKS and step >= 0:
                steps[step] += seconds
        return steps

    def of(self, *names: str) -> float:
        """Seconds of these hooks."""
        return sum(seconds for (name, _), seconds in self.seconds.items() if name in names)


_STEP_HOOKS = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_STEP_HOOKS += ("on_before_zero_grad", "on_train_batch_end")


def fit(network: str, batch_size: int, steps: int, epochs: int, *callbacks: Callback) -> tuple[float, list[float]]:
    """Seconds of one fit, and of its steps.

    Example:
        >>> from research.overhead import fit
        >>> seconds, steps = fit("small CNN", batch_size=2, steps=3, epochs=1)
        >>> len(steps), seconds > sum(steps)
        (2, True)
    """
    torch.manual_seed(0)
    shape = (steps * batch_size, 32) if network == "MiniLM" else (steps * batch_size, 3, 32, 32)
    inputs = torch.randint(1000, shape) if network == "MiniLM" else torch.rand(shape)
    model, clock = Plain(NETWORKS[network][0](), inputs, batch_size), StepClock()
    with TemporaryDirectory() as folder, _silence():
        settings = {"enable_checkpointing": False, "enable_model_summary": False, "default_root_dir": folder}
        trainer = Trainer(max_epochs=epochs, callbacks=[clock, *callbacks], logger=CSVLogger(folder), **settings)
        gc.collect()
        start = time.perf_counter()
        trainer.fit(model)
        return time.perf_counter() - start, clock.seconds


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


def measure(network: str, steps: int, epochs: int) -> dict[str, float]:
    """One fit without the callback and one with it.

    Example:
        >>> from research.overhead import measure
        >>> one = measure("small CNN", steps=4, epochs=2)
        >>> one["parts"] == sum(one[part] for part in ("start", "steps", "checks", "end"))
        True
    """
    batch_size = NETWORKS[network][1]
    plain, plain_steps = fit(network, batch_size, steps, epochs)
    callback = AttentionFreezeCallback(threshold=OUT_OF_REACH, front_only=True)
    hooks = HookClock(callback)
    with_it, steps_with_it = fit(network, batch_size, steps, epochs, callback)
    step = statistics.median(plain_steps)
    of_step = hooks.of_step()
    parts = {
        # In its first steps the layers are found and the FLOPs counted: the whole step is slower, not the hooks alone.
        "start": hooks.of("setup", "on_fit_start", "on_train_start") + max(0.0, sum(steps_with_it[:2]) - 2 * step),
        "steps": sum(of_step[2:]),
        "checks": hooks.of("on_train_epoch_start", "on_train_epoch_end"),
        "end": hooks.of("on_train_end", "on_fit_end", "teardown"),
    }
    return {
        "plain": plain,
        "with": with_it,
        "step": step,
        "step with": statistics.median(steps_with_it[2:]),
        "hooks of a step": statistics.median(of_step[2:]),
        "parts": sum(parts.values()),
        **parts,
    }


def main(networks: list[str] | None = None, steps: int = 100, epochs: int = 4, repetitions: int = 5) -> None:
    """Measure and print a table.

    Args:
        networks: Some of the networks; all by default.
        steps: Training steps an epoch.
        epochs: Epochs of a fit; after each but the last there is a check.
        repetitions: Fits of either kind, in turn.
    """
    chosen = networks or list(NETWORKS)
    if unknown := set(chosen) - set(NETWORKS):
        sys.exit(f"networks={sorted(unknown)}: give some of {list(NETWORKS)}")
    if steps < 4 or repetitions < 1:
        sys.exit(f"steps={steps}, repetitions={repetitions}: give at least 4 steps and 1 repetition")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    fit(chosen[0], 2, 4, 1, AttentionFreezeCallback())  # what is imported and allocated once
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    with Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as progress:
        for _ in progress.track(range(repetitions), description=f"{len(chosen)} networks, {repetitions} repetitions"):
            for name in chosen:
                runs[name].append(measure(name, steps, epochs))
    _print(runs, steps, epochs, repetitions)


def _print(runs: dict[str, list[dict[str, float]]], steps: int, epochs: int, repetitions: int) -> None:
    title = f"{epochs} epochs of {steps} steps, {repetitions} repetitions, {torch.get_num_threads()} threads; medians"
    table = Table(title=title)
    heads = ["", "step, ms", "hooks a step, ms", "share", "fit, s"]
    for head in [*heads, *(f"{part}, s" for part in PARTS), "parts of fit", "fit longer by (range)"]:
        table.add_column(head, justify="right" if head else "left")
    for name, fits in runs.items():
        median = {key: statistics.median(one[key] for one in fits) for key in fits[0]}
        longer = sorted(one["with"] / one["plain"] - 1 for one in fits)
        table.add_row(
            name,
            f"{1e3 * median['step']:.1f}",
            f"{1e3 * median['hooks of a step']:.3f}",
            f"{median['hooks of a step'] / median['step']:.2%}",
            f"{median['plain']:.1f}",
            *(f"{median[part]:.3f}" for part in PARTS),
            f"{median['parts'] / median['plain']:.2%}",
            f"{statistics.median(longer):+.1%} ({longer[0]:+.1%} to {longer[-1]:+.1%})",
        )
    Console(width=max(140, Console().width)).print(table)


if __name__ == "__main__":
    auto_cli(main)
