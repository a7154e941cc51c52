"""StaticFreezeCallback: the first layers are frozen from the start."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.layers.layer import Layer


class StaticFreezeCallback(FreezingCallback):
    """Fine-tune only the last layers, as is common practice (studied by Lee et al. 2019, "What Would Elsa Do?").

    The layers are found in the first training step; what that step moved in the frozen ones is put back, so they are
    frozen from the start. ``layers=0`` freezes nothing and measures plain training.

    Args:
        layers: How many layers from the front, or their share of all layers if it is below 1.
        exclude: Patterns of what always trains.

    Raises:
        MisconfigurationException: ``layers`` is negative, or a share of 1 or more; in the first step: it is
            more than may freeze.

    Example:
        >>> from smartfrz_lightning import StaticFreezeCallback
        >>> StaticFreezeCallback(layers=0.5).layers_to_freeze
        0.5
    """

    works_sharded = False

    def __init__(self, layers: int | float = 0.5, exclude: Sequence[str] = ()) -> None:
        super().__init__(every_n_train_steps=1, exclude=exclude)
        if layers < 0 or (layers >= 1 and not isinstance(layers, int)):
            raise MisconfigurationException(
                f"layers={layers}: give a whole number of layers, such as 3, or a share below 1, such as 0.5"
            )
        self.layers_to_freeze = layers
        self._start: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.layers and not self._start and self.layers_to_freeze:
            self._start = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def check_due(self, trainer: Trainer) -> bool:
        return self.timeline.steps == 1 and bool(self.layers_to_freeze)

    def on_layers_found(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._count > len(self.active):
            raise MisconfigurationException(
                f"layers={self.layers_to_freeze}: {type(pl_module).__name__} has {len(self.active)} layers that may "
                "freeze; the last one that leads to the loss always trains"
            )

    @property
    def _count(self) -> int:
        share = self.layers_to_freeze
        return int(share) if share >= 1 else int(share * len(self.layers))

    def select(self, trainer: Trainer, pl_module: LightningModule, active: list[Layer]) -> list[str]:
        return [layer.name for layer in active[: self._count]]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._start and self.timeline.steps:
            state = pl_module.state_dict()
            inside = {name for layer in self._frozen_layers() for name in [*layer.parameters, *layer.stateful]}
            for name, tensor in self._start.items():
                if name in inside or name.rpartition(".")[0] in inside:
                    state[name].copy_(tensor)
            self._start = {}
