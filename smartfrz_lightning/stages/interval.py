"""IntervalStage: one layer after another, timed to save a given share of the FLOPs of a run."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from smartfrz_lightning.cost.step_cost import StepCost
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.layers.layer import connected
from smartfrz_lightning.stages.stage import Stage
from smartfrz_lightning.stages.start import check_shares


class IntervalStage(Stage):
    """Freeze one layer after another, front first, so that the run saves a share of its FLOPs.

    What the stages before it froze counts, from the batch in which it froze to the end of the run, and so does what a
    trial cost. If that saves enough, nothing more freezes. Otherwise the layers that train are spread evenly over what
    is left of the run, from a moment on that is computed from the FLOPs of each. As ``IntervalFreezeCallback``, after
    Yuan et al. 2022, "Layer Freezing & Data Sieving".

    Args:
        save: Share of the FLOPs of the run, between 0 and 1.
        interval: Optimizer steps between two layers; by default they are spread evenly.

    Attributes:
        missing: What cannot be saved of that any more.

    Raises:
        ValueError: ``save`` is out of range.
    """

    def __init__(self, save: float, interval: int | None = None) -> None:
        check_shares(save=save)
        self.save, self.interval = float(save), interval
        self.missing = 0.0

    def reset(self) -> None:
        self._plan: dict[str, float] | None = None  # what is yet to freeze
        self._planned_for: list[float] = []
        self._rate = 0.0  # what a batch saves by now, as a share of one in which everything trains
        self._saved = 0.0  # the mean of that until now: a resumed run may have batches of another size
        self._since: list[float] = []  # the latest step, a batch an entry

    def start(self, run: TrainingRun) -> None:
        if not run.steps:
            self.reset()  # also for a further fit of the same model, with what is frozen by then
        self.changed(run, (), ())
        if self._planned_for != [self.save, run.total_batches]:  # a resumed run may be longer, or save more
            self._plan = None
        if run.total_batches == math.inf and not run.steps:
            run.say(
                f"To save {self.save:g} of the FLOPs, the length of the run has to be known: give max_epochs or "
                "max_steps, and with a data loader without length max_steps. Nothing freezes after the start."
            )

    def changed(self, run: TrainingRun, frozen: Collection[str], thawed: Collection[str]) -> None:
        self._rate = 1 - run.agree(run.cost.relative(run.frozen)) if run.cost is not None else 0.0

    def batch_done(self, run: TrainingRun, stepped: bool) -> None:
        tried = run.shadow_step is not None and run.shadow_step.repeated
        self._since.append(self._rate - tried)
        if stepped:
            self._saved += sum(saves - self._saved for saves in self._since) / run.batches
            self._since = []

    def check_due(self, run: TrainingRun) -> bool:
        if self._plan is None and run.cost is not None and run.progress and run.total_batches < math.inf:
            self._plan = run.agree(self._planned(run))  # batches of other length cost other FLOPs
            self._planned_for = [self.save, run.total_batches]
        return bool(_over(self._plan, run))

    def _planned(self, run: TrainingRun) -> dict[str, float]:
        assert run.cost is not None and run.progress
        left = self.save - self._saved * run.progress - self._rate * (1 - run.progress)
        if left <= 0 or run.progress == 1:  # a run of one step, as with fast_dev_run
            return {}
        names = connected(run.layers, run.frozen, {layer.name for layer in run.active})
        gap = None if self.interval is None else self.interval * _step(run)
        plan, saves = plan_freezing(run.cost, names, left, gap, run.progress, run.frozen)
        self.missing = max(0.0, left - saves)
        if self.missing > 1e-6:
            run.say(f"Of the FLOPs {self.save - self.missing:.2f} can still be saved, and not {self.save:g}.")
        elif plan:
            first = min(plan.values())
            run.say(
                f"To save {self.save:g} of the FLOPs, one layer after another freezes from {first:.0%} of the run on."
            )
        return plan

    def select(self, run: TrainingRun) -> list[str]:
        return _over(self._plan, run)

    def decision_applied(self, run: TrainingRun) -> None:
        over = set(_over(self._plan, run)) | set(run.frozen)
        self._plan = {name: moment for name, moment in (self._plan or {}).items() if name not in over}

    def method_state(self) -> dict[str, Any]:
        return {"plan": self._plan, "planned_for": self._planned_for, "saved": self._saved}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        self._plan, self._planned_for, self._saved = state["plan"], state["planned_for"], state["saved"]


def _over(plan: dict[str, float] | None, run: TrainingRun) -> list[str]:
    """The layers whose moment has come, and which train."""
    if not plan or not run.progress:
        return []
    nearest = run.progress + 0.5 * _step(run)  # moments are whole steps
    return [layer.name for layer in run.active if nearest >= plan.get(layer.name, math.inf)]


def _step(run: TrainingRun) -> float:
    """The share of the run that a step takes; of one that had begun before, what a batch takes."""
    assert run.progress
    return run.progress / (run.batches if run.begun_before else run.steps)


def plan_freezing(
    cost: StepCost,
    names: Sequence[str],
    reduction: float,
    interval: float | None = None,
    earliest: float = 0.0,
    frozen: Sequence[str] = (),
) -> tuple[dict[str, float], float]:
    """When each layer has to freeze to save a share of a run's FLOPs.

    Times are shares of the run, of which ``earliest`` is over. Layers freeze in this order, at an interval, or spread
    evenly to the end of the run. Returned is when each of them does, without those that would after the end; and the
    share of FLOPs that this saves besides what is ``frozen``, less than ``reduction`` if so much cannot be saved.
    """
    costs = [cost.relative([*frozen, *names[:count]]) for count in range(len(names) + 1)]

    def plan(start: float) -> list[float]:
        gap = interval or (1 - start) / max(1, len(names))
        return [start + number * gap for number in range(len(names))]

    def saved(start: float) -> float:
        moments = [min(1.0, moment) for moment in plan(start)] + [1.0]
        return sum((costs[0] - costs[n + 1]) * (moments[n + 1] - moments[n]) for n in range(len(names)))

    # The later the start, the less is saved: search the last one that saves enough by halving.
    early, late = earliest, 1.0
    for _ in range(40):
        middle = (early + late) / 2
        early, late = (middle, late) if saved(middle) >= reduction else (early, middle)
    return {name: moment for name, moment in zip(names, plan(early), strict=True) if moment < 1}, saved(early)
