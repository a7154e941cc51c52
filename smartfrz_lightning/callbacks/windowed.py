"""WindowedFreezingCallback: for methods that judge a layer by the recent history of its weights."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.callbacks.run_length import steps_per_epoch, steps_total
from smartfrz_lightning.history.window import WeightHistory, snapshot_spacing
from smartfrz_lightning.layers.layer import Layer, connected


class WindowedFreezingCallback(FreezingCallback):
    """Base of the methods that look at windows of weight snapshots (paper, sections 3.1 and 3.2).

    A method says in :meth:`ready` which windows are those of finished layers.

    Args:
        front_only: Freeze a layer only once all before it have.
        every_n_epochs: Check at the end of every n-th epoch; 1 if neither interval is given.
        every_n_train_steps: Check every n optimizer steps instead.
        snapshot_every_n_steps: Optimizer steps between snapshots; by default so many that a window covers 1.5 epochs.
        window: Snapshots kept a layer.
        sample_size: Sampled weights a layer.
        seed: Fixes which weights are sampled.
        exclude: Patterns of what always trains.

    Raises:
        MisconfigurationException: An argument is below 1, or both intervals are given.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.callbacks.windowed import WindowedFreezingCallback
        >>> class FreezeStill(WindowedFreezingCallback):
        ...     def ready(self, windows, names, steps):
        ...         return {name: 1.0 for name, window in zip(names, windows) if (window[0] == window[-1]).all()}
        >>> method = FreezeStill(False, None, None, None, window=2, sample_size=1, seed=0, exclude=())
        >>> method.ready(torch.tensor([[[3.0], [4.0]], [[5.0], [5.0]]]), ["moving", "still"], [10, 20])
        {'still': 1.0}
    """

    def __init__(
        self,
        front_only: bool,
        every_n_epochs: int | None,
        every_n_train_steps: int | None,
        snapshot_every_n_steps: int | None,
        window: int,
        sample_size: int,
        seed: int,
        exclude: Sequence[str],
    ) -> None:
        super().__init__(every_n_epochs, every_n_train_steps, exclude)
        for name, value in (
            ("window", window),
            ("sample_size", sample_size),
            ("snapshot_every_n_steps", snapshot_every_n_steps),
        ):
            if value is not None and value < 1:
                raise MisconfigurationException(f"{name}={value}: must be at least 1")
        self.front_only = front_only
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self.window = window
        self.sample_size = sample_size
        self.seed = seed
        self._history: WeightHistory | None = None

    @abstractmethod
    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        """Which layers are done, with a confidence.

        Args:
            windows: ``[layers, snapshots, sample_size]``, oldest first, at least two snapshots.
            names: Name of each layer.
            steps: When each snapshot was taken.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._spacing = self.snapshot_every_n_steps or snapshot_spacing(
            steps_per_epoch(trainer), steps_total(trainer), self.window
        )
        if self.layers and self._history is None:
            self._history = self._new_history(pl_module)

    def on_layers_found(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._history = self._new_history(pl_module)

    def on_optimizer_step_done(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.timeline.steps % self._spacing == 0:
            self._history.record(self.timeline.steps)

    def select(self, trainer: Trainer, pl_module: LightningModule, active: list[Layer]) -> dict[str, float]:
        if len(self._history.steps) < 2:  # one snapshot shows no movement
            return {}
        ready = self.ready(self._history.windows(), self._history.names, self._history.steps)
        if not self.front_only:
            return ready
        return {name: ready[name] for name in connected(self.layers, self.frozen, ready)}

    def on_freeze(self, names: list[str]) -> None:
        self._history.drop(names)

    def method_state(self) -> dict[str, Any]:
        return {"history": self._history.state_dict()} if self._history else {}

    def load_method_state(self, state: dict[str, Any], pl_module: LightningModule) -> None:
        self._history = self._new_history(pl_module)
        if "history" in state:
            self._history.load_state_dict(state["history"])

    def _new_history(self, pl_module: LightningModule) -> WeightHistory:
        return WeightHistory(pl_module, self.active, self.window, self.sample_size, self.seed)

    def _reset(self) -> None:
        super()._reset()
        self._history = None
