"""TrainingMeter: seconds of training, validation and start-up, and how much was trained on."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from smartfrz_lightning.cost.meter import batch_size


class TrainingMeter(Callback):
    """Put it first among the callbacks; it stops before the others say goodbye. It takes a few microseconds a step.

    ``seconds`` has ``startup`` (until the first training step begins), ``validation`` and ``train`` (all between the
    first step and the last, without validation).

    Attributes:
        seen: Sizes of all batches so far, see ``batch_size``.
    """

    def __init__(self) -> None:
        self.seconds = {"startup": 0.0, "validation": 0.0, "train": 0.0}
        self._since = time.perf_counter()
        self.seen = 0.0

    def _book(self, part: str, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[part] += now - self._since
        self._since = now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._book("startup", pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen += batch_size(batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._book("startup" if trainer.sanity_checking else "train", pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._book("startup" if trainer.sanity_checking else "validation", pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._book("train", pl_module)
