"""Add up the sizes of all training batches of a plain fit, from which its FLOPs follow."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from smartfrz_lightning.cost import batch_size


class BatchSizes(Callback):
    """All that a benchmark adds to plain training besides its clock: a few microseconds a step.

    Attributes:
        seen: Sizes of all batches so far, see ``batch_size``.
        first: Size of the first batch.
        steps: Batches after which an optimizer stepped.
    """

    def __init__(self) -> None:
        self.seen, self.first, self.steps = 0.0, 0.0, 0
        self._global_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        size = batch_size(batch)
        self.seen, self.first = self.seen + size, self.first or size
        self.steps += trainer.global_step != self._global_step
        self._global_step = trainer.global_step
