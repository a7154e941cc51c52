"""IntervalFreezeCallback: one layer after another, timed to save a given share of the FLOPs."""

from typing import Any

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.layers.layer import connected
from smartfrz_lightning.stages.interval import layers_over, plan_freezing


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
            plan, saves = plan_freezing(run.cost, names, self.flops_reduction, gap, earliest=step)
            if saves < self.flops_reduction:
                raise ValueError(
                    f"flops_reduction={self.flops_reduction}: {saves:.3f} is the most that freezing one layer after "
                    "another can " + (f"save at an interval of {gap:.3f} of the run; shorten it" if gap else "save")
                )
            self._plan = run.agree(plan)  # batches of other length cost other FLOPs

    def check_due(self, run: TrainingRun) -> bool:
        return bool(layers_over(self._plan, run))

    def select(self, run: TrainingRun) -> list[str]:
        return layers_over(self._plan, run)

    def method_state(self) -> dict[str, Any]:
        return {"plan": self._plan}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        self._plan = state["plan"]
