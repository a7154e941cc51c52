"""IntervalFreezeCallback: one layer after another, timed to save a given share of the FLOPs."""

from collections.abc import Sequence
from typing import Any

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.cost import StepCost
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.layers.layer import connected


class IntervalFreezeCallback(FreezingCallback):
    """Progressive layer freezing to a target (Yuan et al. 2022, "Layer Freezing & Data Sieving").

    From some step on, one layer after another freezes at a constant interval, front first. The start is computed from
    the FLOPs of each layer, as measured in the first training step, so that the whole run saves ``flops_reduction``.

    - **When**: a given share of the FLOPs is to be saved, and nothing is known of the task.
    - **When not**: from scratch, where it cost 3.8 ± 1.4 points at 0.8 of the FLOPs (research/results/0.2.0).
    - **Cost**: none to speak of.
    - **Source**: Yuan et al. 2022, "Layer Freezing & Data Sieving: Missing Pieces of a Generic Framework for Sparse
      Training".

    Args:
        flops_reduction: Share of the training FLOPs to save, between 0 and 1.
        every_n_train_steps: The interval in optimizer steps; by default the layers are spread evenly from the start
            to the end of the run.
        kwargs: Arguments of ``FreezingCallback``, such as ``exclude``.

    Raises:
        ValueError: An argument is out of range; on ``fit``: the run has no known length; in the first step: so much
            cannot be saved.

    Examples:
        >>> from smartfrz_lightning import IntervalFreezeCallback
        >>> IntervalFreezeCallback(flops_reduction=0.3).flops_reduction
        0.3
    """

    def __init__(
        self,
        flops_reduction: float,
        every_n_train_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            every_n_train_steps=1 if every_n_train_steps is None else every_n_train_steps,
            **kwargs,
        )
        if not 0 < flops_reduction < 1:
            raise ValueError(f"flops_reduction={flops_reduction}: must lie between 0 and 1")
        self.flops_reduction = flops_reduction
        self.interval = every_n_train_steps

    def reset(self) -> None:
        self._plan: dict[str, float] = {}

    def start(self, run: TrainingRun) -> None:
        run.require_length("IntervalFreezeCallback")

    def step_done(self, run: TrainingRun) -> None:
        if not self._plan and run.cost is not None and run.progress:
            may_freeze = {layer.name for layer in run.layers if not layer.always_trains}
            names = connected(run.layers, [], may_freeze)
            step = run.progress / run.steps
            gap = None if self.interval is None else self.interval * step
            plan = plan_freezing(run.cost, names, self.flops_reduction, gap, earliest=step)
            self._plan = run.agree(plan)  # batches of other length cost other FLOPs

    def check_due(self, run: TrainingRun) -> bool:
        return bool(self._over(run))

    def select(self, run: TrainingRun) -> list[str]:
        return self._over(run)

    def _over(self, run: TrainingRun) -> list[str]:
        if not self._plan or not run.progress:
            return []
        nearest = run.progress * (1 + 0.5 / run.steps)  # moments are whole steps
        frozen = set(run.frozen)
        return [name for name, moment in self._plan.items() if nearest >= moment and name not in frozen]

    def method_state(self) -> dict[str, Any]:
        return {"plan": self._plan}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        self._plan = state["plan"]


def plan_freezing(
    cost: StepCost,
    names: Sequence[str],
    reduction: float,
    interval: float | None = None,
    earliest: float = 0.0,
) -> dict[str, float]:
    """When each layer has to freeze to save a share of a run's FLOPs.

    Args:
        cost: Of a step.
        names: The layers to freeze, in this order.
        reduction: Share to save.
        interval: Time between two layers, as a share of the run; by default they are spread evenly from the start
            to the end of the run.
        earliest: Share of the run that is over already.

    Returns:
        The share of the run that is done when each layer freezes; those that would freeze after its end are left out.

    Raises:
        ValueError: So much cannot be saved.
    """
    rates = [1 - cost.relative(names[:count]) for count in range(len(names) + 1)]

    def plan(start: float) -> list[float]:
        gap = interval or (1 - start) / max(1, len(names))
        return [start + number * gap for number in range(len(names))]

    def saved(start: float) -> float:
        moments = [min(1.0, moment) for moment in plan(start)] + [1.0]
        return sum(rates[n + 1] * (moments[n + 1] - moments[n]) for n in range(len(names)))

    if saved(earliest) < reduction:
        raise ValueError(
            f"flops_reduction={reduction}: {saved(earliest):.3f} is the most that freezing one layer after another can "
            + (f"save at an interval of {interval:.3f} of the run; shorten it" if interval else "save")
        )
    # The later the start, the less is saved: search the last one that saves enough by halving.
    early, late = earliest, 1.0
    for _ in range(40):
        middle = (early + late) / 2
        early, late = (middle, late) if saved(middle) >= reduction else (early, middle)
    return {name: moment for name, moment in zip(names, plan(early), strict=True) if moment < 1}
