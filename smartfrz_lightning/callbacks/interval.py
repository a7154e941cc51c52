"""IntervalFreezeCallback: one layer after another, timed to save a given share of the FLOPs."""

import bisect
import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.callbacks.run_length import known_length
from smartfrz_lightning.cost.flops import StepFlops
from smartfrz_lightning.cost.layer_flops import LayerFlops, flops_when_frozen
from smartfrz_lightning.layers.layer import Layer, connected


class IntervalFreezeCallback(FreezingCallback):
    """Progressive layer freezing to a target (Yuan et al. 2022, "Layer Freezing & Data Sieving").

    From some step on, one layer after another freezes at a constant interval, front first. The start is computed from
    the FLOPs of each layer, as measured in the first training step, so that the whole run saves ``flops_reduction``.

    Args:
        flops_reduction: Share of the training FLOPs to save, between 0 and 1.
        every_n_train_steps: The interval in optimizer steps; by default the layers are spread evenly from the start
            to the end of the run.
        exclude: Patterns of what always trains.

    Raises:
        MisconfigurationException: An argument is out of range; on ``fit``: the run has no known length; in the first
            step: so much cannot be saved.

    Example:
        >>> from smartfrz_lightning import IntervalFreezeCallback
        >>> IntervalFreezeCallback(flops_reduction=0.3).flops_reduction
        0.3
    """

    def __init__(
        self, flops_reduction: float, every_n_train_steps: int | None = None, exclude: Sequence[str] = ()
    ) -> None:
        super().__init__(every_n_train_steps=1 if every_n_train_steps is None else every_n_train_steps, exclude=exclude)
        if not 0 < flops_reduction < 1:
            raise MisconfigurationException(f"flops_reduction={flops_reduction}: must lie between 0 and 1")
        self.flops_reduction = flops_reduction
        self.interval = every_n_train_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        known_length(trainer, "IntervalFreezeCallback")

    def on_optimizer_step_done(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._plan and self.timeline.costs and self.timeline.states:
            may_freeze = {layer.name for layer in self.layers if not layer.pinned}
            names = connected(self.layers, [], may_freeze)
            full, total = self.timeline.states[0].flops, known_length(trainer, "IntervalFreezeCallback")
            plan = plan_freezing(self.timeline.costs, full, names, total, self.flops_reduction, self.interval)
            self._plan = trainer.strategy.broadcast(plan)  # batches of other length cost other FLOPs

    def check_due(self, trainer: Trainer) -> bool:
        return bool(self._over())

    def select(self, trainer: Trainer, pl_module: LightningModule, active: list[Layer]) -> list[str]:
        return self._over()

    def _over(self) -> list[str]:
        steps = self.steps_in_run
        return [layer.name for layer in self.active if steps >= self._plan.get(layer.name, math.inf)]

    def _reset(self) -> None:
        super()._reset()
        self._plan: dict[str, int] = {}

    def method_state(self) -> dict[str, Any]:
        return {"plan": self._plan}

    def load_method_state(self, state: dict[str, Any], pl_module: LightningModule) -> None:
        self._plan = state["plan"]


def plan_freezing(
    costs: Sequence[LayerFlops],
    full: StepFlops,
    names: Sequence[str],
    total: int,
    reduction: float,
    interval: int | None = None,
) -> dict[str, int]:
    """When each layer has to freeze to save a share of a run's FLOPs.

    Args:
        costs: FLOPs of all layers.
        full: FLOPs of a step in which everything trains.
        names: The layers to freeze, in this order.
        total: Optimizer steps of the run.
        reduction: Share to save.
        interval: Steps between two layers; by default they are spread evenly from the start to the end of the run.

    Returns:
        Steps done when each layer freezes.

    Raises:
        MisconfigurationException: So much cannot be saved.

    Example:
        >>> from smartfrz_lightning.callbacks.interval import plan_freezing
        >>> from smartfrz_lightning.cost.flops import StepFlops
        >>> from smartfrz_lightning.cost.layer_flops import LayerFlops
        >>> costs = [LayerFlops("a", 10), LayerFlops("b", 10), LayerFlops("c", 10)]
        >>> full = StepFlops(30, 30, 20)
        >>> plan_freezing(costs, full, ["a", "b"], total=100, reduction=0.25, interval=10)
        {'a': 45, 'b': 55}
    """
    rates = [1 - flops_when_frozen(costs, full, names[:count]).total / full.total for count in range(len(names) + 1)]

    def plan(start: int) -> dict[str, int]:
        gap = interval or (total - start) / max(1, len(names))
        return {name: round(start + number * gap) for number, name in enumerate(names)}

    def saved(start: int) -> float:
        moments = [min(total, moment) for moment in plan(start).values()] + [total]
        return sum(rates[n + 1] * (moments[n + 1] - moments[n]) for n in range(len(names))) / total

    if saved(1) < reduction:
        raise MisconfigurationException(
            f"flops_reduction={reduction}: {saved(1):.3f} is the most that freezing one layer after another can save "
            f"in {total} steps" + (f" at an interval of {interval}; shorten it" if interval else "")
        )
    # The later the start, the less is saved: search the last one that saves enough by halving.
    first_too_late = bisect.bisect_left(range(1, total + 1), True, key=lambda start: saved(start) < reduction) + 1
    return plan(first_too_late - 1)
