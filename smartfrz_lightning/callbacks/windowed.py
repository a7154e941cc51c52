"""WindowedFreezingCallback: for methods that judge a layer by the recent history of its weights."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from torch import Tensor

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.history.window import WeightHistory, snapshot_spacing
from smartfrz_lightning.layers.layer import connected


class WindowedFreezingCallback(FreezingCallback, ABC):
    """Base of the methods that look at windows of weight snapshots (paper, sections 3.1 and 3.2).

    A method says in ``ready`` which windows are those of finished layers.

    Args:
        front_only: Freeze a layer only once all before it are frozen: that saves activation gradients and memory too.
            ``False`` is the paper's rule, each layer for itself.
        snapshot_every_n_steps: Optimizer steps between snapshots; by default a window covers about 1.5 epochs, in a
            short run half of the run.
        window: Snapshots kept a layer, at least 2 (30 in the paper).
        sample_size: Sampled weights a layer (1,024 in the paper).
        seed: Fixes which weights are sampled.
        kwargs: Arguments of ``FreezingCallback``: when to check, what to exclude, the report.

    Raises:
        ValueError: An argument is out of range, or both intervals are given.

    Examples:
        >>> import torch
        >>> from smartfrz_lightning import WindowedFreezingCallback
        >>> class FreezeStill(WindowedFreezingCallback):
        ...     def ready(self, windows, names, steps):
        ...         return {name: 1.0 for name, window in zip(names, windows) if (window[0] == window[-1]).all()}
        >>> method = FreezeStill(window=2, sample_size=1)
        >>> method.ready(torch.tensor([[[3.0], [4.0]], [[5.0], [5.0]]]), ["moving", "still"], [10, 20])
        {'still': 1.0}
    """

    def __init__(
        self,
        front_only: bool = True,
        snapshot_every_n_steps: int | None = None,
        window: int = 30,
        sample_size: int = 1024,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        least = {"window": (window, 2), "sample_size": (sample_size, 1)}
        least["snapshot_every_n_steps"] = (1 if snapshot_every_n_steps is None else snapshot_every_n_steps, 1)
        for name, (value, bound) in least.items():
            if not isinstance(value, int) or value < bound:
                raise ValueError(f"{name}={value!r}: must be a whole number of at least {bound}")
        self.front_only = front_only
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self.window = window
        self.sample_size = sample_size
        self.seed = seed

    @abstractmethod
    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        """Which layers are done, with a confidence.

        Args:
            windows: ``[layers, snapshots, sample_size]``, oldest first, at least two snapshots.
            names: Name of each layer.
            steps: When each snapshot was taken.
        """

    def reset(self) -> None:
        self._history: WeightHistory | None = None

    def start(self, run: TrainingRun) -> None:
        self._spacing = snapshot_spacing(run.batches_per_epoch, run.total_batches, self.window)

    def layers_found(self, run: TrainingRun) -> None:
        self._history = WeightHistory(run.model, run.active, self.window, self.sample_size, self.seed)

    def step_done(self, run: TrainingRun) -> None:
        every = self.snapshot_every_n_steps
        if self._history is not None and (run.passed(self._spacing) if every is None else not run.global_steps % every):
            self._history.record(run.global_steps)

    def select(self, run: TrainingRun) -> dict[str, float]:
        history = self._history
        if history is None or len(history.steps) < 2:  # one snapshot shows no movement
            return {}
        ready = self.ready(history.windows(), history.names, history.steps)
        if not self.front_only:
            return ready
        return {name: ready[name] for name in connected(run.layers, run.frozen, ready)}

    def changed(self, run: TrainingRun, frozen: Collection[str], thawed: Collection[str]) -> None:
        if self._history is not None:
            self._history.watch(run.active)

    def method_state(self) -> dict[str, Any]:
        return {"history": self._history.state_dict()} if self._history else {}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        watched = [layer for layer in run.layers if layer.name in state["history"]["names"]]
        self._history = WeightHistory(run.model, watched, self.window, self.sample_size, self.seed)
        self._history.load_state_dict(state["history"])
        self._history.watch(run.active)  # something else may be excluded by now
