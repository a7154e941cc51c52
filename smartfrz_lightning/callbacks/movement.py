"""MovementFreezeCallback: a control that needs no predictor, one number a layer."""

from typing import Any

from torch import Tensor

from smartfrz_lightning.callbacks.windowed import WindowedFreezingCallback


class MovementFreezeCallback(WindowedFreezingCallback):
    """Freeze a layer when its weights have hardly moved over a full window.

    The movement is ``||w_last - w_first|| / ||w_last||`` over the sampled weights. A control: whoever looks at windows
    of weights should do better than this.

    - **When**: as a control; from scratch it lost least in our measurements.
    - **When not**: the learning rate decays to zero early: then everything stands still.
    - **Cost**: the window, 30 snapshots of 1,024 weights a layer.
    - **Source**: this project, as a control.

    Args:
        threshold: Movement below which a layer freezes.
        front_only: Freeze a layer only once all before it are frozen.
        kwargs: Further arguments of ``WindowedFreezingCallback``: the history and checks.

    Raises:
        ValueError: An argument is out of range, or both intervals are given.
    """

    def __init__(self, threshold: float = 0.05, front_only: bool = False, **kwargs: Any) -> None:
        super().__init__(front_only=front_only, **kwargs)
        if not threshold > 0:
            raise ValueError(f"threshold={threshold}: must be above 0")
        self.threshold = threshold

    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        if len(steps) < self.window:
            return {}
        first, last = windows[:, 0], windows[:, -1]
        moved = ((last - first).norm(dim=-1) / last.norm(dim=-1).clamp_min(1e-12)).tolist()
        # The further below the threshold, the surer.
        return {n: 1 - value / self.threshold for n, value in zip(names, moved, strict=True) if value < self.threshold}
