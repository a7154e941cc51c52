"""WindowedFreezingCallback: for methods that judge a layer by the recent history of its weights."""

from abc import ABC
from typing import Any

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.stages.windowed import WindowedStage


class WindowedFreezingCallback(FreezingCallback, WindowedStage, ABC):
    """Base of the methods that look at windows of weight snapshots (paper, sections 3.1 and 3.2).

    A method says in :meth:`ready` which windows are those of finished layers.

    Args:
        front_only: Freeze a layer only once all before it are frozen: that saves activation gradients and memory too.
            ``False`` is the paper's rule, each layer for itself.
        snapshot_every_n_steps: Optimizer steps between snapshots; by default a window covers about 1.5 epochs, in a
            short run half of the run.
        window: Snapshots kept a layer, at least 2 (30 in the paper).
        sample_size: Sampled weights a layer (1,024 in the paper).
        seed: Fixes which weights are sampled.
        kwargs: Arguments of :class:`~smartfrz_lightning.FreezingCallback`: when to check, what to exclude, the report.

    Raises:
        ValueError: An argument is out of range, or both intervals are given.

    Example:
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
        WindowedStage.__init__(self, front_only, snapshot_every_n_steps, window, sample_size, seed)
