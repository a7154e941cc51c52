"""PlanCallback: measure in the first steps of a training what freezing would save, and say how safe it is."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from smartfrz_lightning.callbacks.showing import print_shown
from smartfrz_lightning.callbacks.smart import SmartFreezeCallback
from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.report.plan import EXPECTED_LOSS, PlannedPrefix, plan_table, plot_plan
from smartfrz_lightning.stages.later import LaterStage
from smartfrz_lightning.stages.stage import Stage
from smartfrz_lightning.stages.start import StartStage

SHARES = (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)
"""Of the layers that may freeze: the prefixes that are measured."""

WARM_UP, TIMED = 2, 8


class _Measure(Stage):
    """Once the start stage has decided, take some steps with each of some prefixes frozen."""

    def __init__(self, start: StartStage) -> None:
        self._start = start

    def reset(self) -> None:
        self._depths: list[int] = []  # to measure
        self.seconds: dict[int, list[float]] = {}  # of steps, by layers that are frozen
        self.memory: dict[int, float] = {}
        self.over = False
        self._began: float | None = None  # of the step that is under way

    def before_batch(self, run: TrainingRun) -> None:
        if self._began is not None:  # gradients accumulate
            return
        if _accelerated(run):
            torch.accelerator.synchronize()
            torch.accelerator.reset_peak_memory_stats()
        self._began = time.perf_counter()

    def step_done(self, run: TrainingRun) -> None:
        began, self._began = self._began, None
        if began is None or self.over or self._start.busy(run):
            return
        if not self._depths:
            free = sum(not layer.always_trains for layer in run.layers)
            chosen = run.agree(len(self._start.answer.freeze))
            self._depths = sorted({round(share * free) for share in SHARES} | {chosen})
        depth = len(run.frozen)
        if depth != self._next():
            return
        if _accelerated(run):
            torch.accelerator.synchronize()
            self.memory[depth] = torch.accelerator.max_memory_allocated() / 1e9
        self.seconds.setdefault(depth, []).append(time.perf_counter() - began)
        self.over = self._next() is None

    def _next(self) -> int | None:
        """The prefix to measure now; ``None`` if all are."""
        return next((depth for depth in self._depths if len(self.seconds.get(depth, ())) < WARM_UP + TIMED), None)

    def check_due(self, run: TrainingRun) -> bool:
        return bool(self._depths) and not self.over and self._next() != len(run.frozen)

    def select(self, run: TrainingRun) -> Decision:
        names = [layer.name for layer in run.layers if not layer.always_trains]
        depth, frozen = self._next() or 0, set(run.frozen)
        freeze = [name for name in names[:depth] if name not in frozen]
        return Decision(freeze, [name for name in names[depth:] if name in frozen], untrained=True)

    def decision_applied(self, run: TrainingRun) -> None:
        depth = self._next()
        if depth is not None and len(run.frozen) != depth:  # something in it cannot freeze
            self._depths.remove(depth)
            self.over = self._next() is None


def _accelerated(run: TrainingRun) -> bool:
    return next(run.model.parameters()).device.type in ("cuda", "xpu")


class PlanCallback(SmartFreezeCallback):
    """Say what freezing each prefix of a network would save in this training, and how safe it is; then stop.

    In a Trainer in place of ``SmartFreezeCallback``, or as ``smartfrz plan --config ...``:
    after the probe of the start stage, ten steps are taken with each of some prefixes frozen. Then the Trainer stops,
    and a table and a picture show the share of parameters, FLOPs, time and memory of a step, p(safe) of freezing the
    prefix from the start, and from when on it would be frozen later. The model has been trained meanwhile: make a new
    one afterwards.

    - **When**: to decide by hand, or to see beforehand what the default would do.
    - **When not**: in the training itself.
    - **Cost**: some eighty steps.
    - **Source**: this project.

    Args:
        start: Chooses the default's prefix.
        later: Says from when on each prefix would be frozen later; ``False`` if nothing is.
        exclude: Shell-style patterns of modules, layers or parameters that always train.

    Attributes:
        plan: What was found, a prefix an entry; empty before.
    """

    def __init__(
        self, start: StartStage | None = None, later: LaterStage | bool = True, exclude: Sequence[str] | str = ()
    ) -> None:
        if not isinstance(start, StartStage | None):
            raise ValueError(f"start={start!r}: must be a StartStage")
        start = start or StartStage()
        self._measure, verified, save = _Measure(start), start.verified, start.save
        super().__init__(start, verify=False, later=self._measure, exclude=exclude, report=False)
        start.verified, start.save, self.works_sharded = verified, save, False
        self._start = start
        self._later: LaterStage | None = LaterStage() if later is True else later or None
        self.plan: list[PlannedPrefix] = []

    # --- what is shown

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None  # it stops as soon as it knows
        for config in trainer.lr_scheduler_configs:
            config.strict = False  # what it monitors may not be there

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        trainer.should_stop |= self._measure.over

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._engine.run
        super().on_train_end(trainer, pl_module)
        if not trainer.is_global_zero or not self._measure.seconds or run.cost is None:
            return
        self.plan = self._planned(run)
        print_shown(plan_table(self.plan, type(pl_module).__name__, run.steps, self.timeline.notes[:1], self.exclude))
        if not self._measure.over:
            print_shown(f"The run ended after {run.steps} steps, before all prefixes were measured: take a longer one.")
        if self._folder is not None:
            path = Path(self._folder) / "freeze_plan.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            plot_plan(self.plan, path)
            print_shown(f"picture: {path}")

    def _planned(self, run: TrainingRun) -> list[PlannedPrefix]:
        free = [layer for layer in run.layers if not layer.always_trains]
        size = sum(layer.size for layer in run.layers)
        times = {depth: median(taken[WARM_UP:] or taken) for depth, taken in self._measure.seconds.items()}
        safe = self._start.safe
        assert run.cost is not None
        return [
            PlannedPrefix(
                layers=depth,
                of=len(free),
                last=free[depth - 1].name if depth else "",
                parameters=sum(layer.size for layer in free[:depth]) / size,
                flops=run.cost.relative([layer.name for layer in free[:depth]]),
                seconds=times[depth],
                time=times[depth] / times[min(times)],
                memory=self._measure.memory.get(depth),
                safe=safe[depth - 1] if depth and safe else None,
                later=self._later.earliest(len(free), depth, EXPECTED_LOSS) if depth and self._later else None,
                default=bool(depth) and depth == len(self._start.answer.freeze),
            )
            for depth in sorted(times)
        ]
