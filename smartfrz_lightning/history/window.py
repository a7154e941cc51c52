"""The weight history of the layers that still train: the last snapshots, in one tensor."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.layers.layer import Layer


class WeightHistory:
    """A ring of the latest snapshots of every active layer (paper, sections 3.1 and 3.2).

    The ring is one preallocated tensor ``[layers, window, sample_size]`` of float32 on the device of the weights.
    Where a layer is watched that was not watched before, as after a thaw, all windows begin again.

    Attributes:
        window: The most snapshots that are kept.
        steps: When those in the window were taken, oldest first.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], window: int = 30, sample_size: int = 1024, seed: int = 0
    ) -> None:
        self._layers, self.window = list(layers), window
        self._sampler = WeightSampler(model, layers, sample_size, seed)
        device = next(model.parameters()).device
        self._ring = torch.zeros(len(layers), window, sample_size, dtype=torch.float, device=device)
        self.steps: list[int] = []
        self._recorded = 0

    @property
    def names(self) -> list[str]:
        """The layers that are watched, in forward order."""
        return [layer.name for layer in self._layers]

    def record(self, step: int) -> None:
        """Take a snapshot of every watched layer."""
        if not self._layers:
            return
        self._sampler(self._ring[:, self._recorded % self.window])
        self._recorded += 1
        self.steps = [*self.steps, step][-self.window :]

    def windows(self) -> Tensor:
        """The snapshots of every watched layer, oldest first: ``[layers, snapshots, sample_size]``."""
        oldest = max(0, self._recorded - self.window)
        order = [number % self.window for number in range(oldest, self._recorded)]
        return self._ring[:, order]

    def watch(self, layers: Sequence[Layer]) -> None:
        """Watch exactly these layers from now on."""
        row_of = {layer.name: row for row, layer in enumerate(self._layers)}
        names = [layer.name for layer in layers]
        if names == list(row_of):
            return
        if row_of.keys() >= set(names):
            self._ring = self._ring[[row_of[name] for name in names]]
        else:
            self._ring = self._ring.new_zeros(len(names), *self._ring.shape[1:])
            self.steps, self._recorded = [], 0
        self._layers = list(layers)
        self._sampler.watch(layers)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after a resume."""
        return {"names": self.names, "ring": self._ring, "steps": self.steps, "recorded": self._recorded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved history of the same layers; ``ValueError`` for another window or sample size."""
        if state["ring"].shape != self._ring.shape:
            raise ValueError(
                f"the saved history has window and sample size {tuple(state['ring'].shape[1:])}, this run has "
                f"{tuple(self._ring.shape[1:])}: resume with those of the run that was saved"
            )
        self._ring.copy_(state["ring"])
        self.steps, self._recorded = list(state["steps"]), state["recorded"]


def snapshot_spacing(batches_per_epoch: float, total_batches: float = float("inf"), window: int = 30) -> int:
    """Batches between snapshots, so that a window covers about one and a half epochs, but at most half of the run.

    Where the data loader has no length, a tenth of the run counts as an epoch.
    """
    epoch = min(batches_per_epoch, total_batches)
    if batches_per_epoch == float("inf"):
        epoch = total_batches / 10
    if epoch == float("inf"):
        return 25
    return max(1, round(min(1.5 * epoch, total_batches / 2) / window))
