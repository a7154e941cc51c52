"""A prefix that trains in every fourth step alone; tried once, see ``later_predictor.md``."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from smartfrz_lightning import StaticFreezeCallback


class EveryFourth(StaticFreezeCallback):
    """Train the first half of the convolutions and linear layers, with their norms, in every fourth step.

    What it saves is not booked: it takes a quarter of the FLOPs of full training, and three quarters of those of
    ``StaticFreezeCallback(0.5)``.

    Args:
        scale: What the prefix's gradients are multiplied by in these steps.
        kwargs: Arguments of ``FreezingCallback``.
    """

    def __init__(self, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(layers=0, **kwargs)
        self.scale = scale

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        layers = [m for m in pl_module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        modules = list(pl_module.modules())
        before = modules[: modules.index(layers[len(layers) // 2])]
        self._prefix = [p for module in before for p in module.parameters(recurse=False)]
        for parameter in self._prefix:
            parameter.register_hook(lambda gradient: gradient * self.scale)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        for parameter in self._prefix:
            parameter.requires_grad_(trainer.global_step < 2 or trainer.global_step % 4 == 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for parameter in self._prefix:
            parameter.requires_grad_(True)
        super().on_train_end(trainer, pl_module)
