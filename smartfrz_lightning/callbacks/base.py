"""FreezingCallback: Lightning's Trainer drives the freezing engine."""

import weakref
from abc import ABC
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from smartfrz_lightning.callbacks.run_position import position, total_batches
from smartfrz_lightning.callbacks.showing import FreezeLog, show_report
from smartfrz_lightning.callbacks.strategies import (
    TrainerProcesses,
    before_late_restore,
    check_strategy,
    forget_late_restore,
)
from smartfrz_lightning.callbacks.trainer_step import TrainerStep, cannot_verify
from smartfrz_lightning.engine.freezer import Freezer
from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.outside import thaw_frozen_here
from smartfrz_lightning.engine.state import check_version, lost
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.private.trainer import callbacks_of, trains_statistics_only, unscale, unscaled
from smartfrz_lightning.report.timeline import FreezeEvent, Timeline

# Lightning gives every callback these methods of the LightningModule, which keep it alive.
_ATTACHED = ("log", "log_dict")


class FreezingCallback(FreezingMethod, Callback, ABC):
    """Base of all freezing methods; a method says in ``select`` which active layers should stop now.

    The rest of what a method may override stands in ``FreezingMethod``; none of it
    knows a Trainer, so that every method works in a training loop of your own as well, see
    ``Freezer``. Here Lightning's hooks are passed on to that engine.

    Args:
        report: Whether to print a table at the end of a fit and to leave it as CSV and picture in the folder of the
            Trainer's logger; or another folder for the files.
        kwargs: Arguments of ``FreezingMethod``: when to ask, and what to exclude.

    Raises:
        ValueError: Both intervals are given, or one is below 1; on ``fit``: a pattern matches nothing in the model, or
            nothing in it trains.
        MisconfigurationException: On ``fit``: the strategy is not supported, or the Trainer has another callback of
            this kind.
    """

    def __init__(self, report: bool | str | Path = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(report, bool | str | Path):
            raise ValueError(f"report={report!r}: must be True, False or a folder")
        self.report = str(report) if isinstance(report, Path) else report

    _freezer: Freezer | None = None  # during a fit
    _carried: dict[str, Any] | None = None  # between two fits of one model
    _loaded: dict[str, Any] | None = None  # from a checkpoint, until a fit takes it up
    _model: weakref.ref | None = None
    _timeline = Timeline()

    @property
    def _engine(self) -> Freezer:
        assert self._freezer is not None, "only during a fit"
        return self._freezer

    @property
    def timeline(self) -> Timeline:
        """What froze when, and what it saved."""
        return self._freezer.timeline if self._freezer is not None else self._timeline

    @property
    def layers(self) -> list[Layer]:
        """The layers of the model in forward order; empty until the first training step was watched."""
        return self.timeline.layers

    @property
    def frozen(self) -> list[str]:
        """Names of the layers that are frozen, in the order in which they froze."""
        return self.timeline.frozen

    def thaw(self) -> None:
        """Let every layer train again that this package froze in the model, now or after the fit.

        After the fit, the callback forgets that fit, so that a further one begins anew.
        """
        if self._freezer is not None:
            self._freezer.change(thaw_now=self.frozen)
        elif (model := self._model and self._model()) is not None:
            thaw_frozen_here(model)
            thawed = [FreezeEvent(name, self._timeline.steps, self._epoch, None, "thaw") for name in self.frozen]
            self._timeline.events += thawed
            self._carried = None

    # --- before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        check_strategy(trainer, type(self).__name__, self.works_sharded)
        rivals = [type(c).__name__ for c in callbacks_of(trainer) if c is not self and isinstance(c, FreezingCallback)]
        if rivals:
            raise MisconfigurationException(
                f"{type(self).__name__} and {', '.join(rivals)} in one Trainer: both would act on the same layers, "
                "keep one of them"
            )
        if not self._knows(pl_module) and (again := thaw_frozen_here(pl_module)):  # before optimizers are made
            rank_zero_info(
                f"{type(self).__name__}: layers that an earlier fit froze train again: {', '.join(again[:3])}"
                f"{' and others' if len(again) > 3 else ''}."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log = FreezeLog()
        self._folder: str | None = None
        state = self._loaded or (self._carried if self._knows(pl_module) else None)
        self._model = weakref.ref(pl_module)
        self._freezer = Freezer(
            pl_module,
            trainer.optimizers,
            self,
            processes=TrainerProcesses(trainer),
            position=lambda: position(trainer),
            schedulers=[config.scheduler for config in trainer.lr_scheduler_configs],
            say=lambda text: rank_zero_info(f"{type(self).__name__}: {text}"),
        )
        if state is not None:
            self._freezer.load_state_dict(state)
        before_late_restore(trainer, self.state_key, self._freezer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        forget_late_restore(trainer)
        self._loaded = self._carried = None  # taken up before
        folder = trainer.log_dir  # asks all processes
        own = self.report if isinstance(self.report, str) else folder if trainer.loggers else None
        self._folder = None if trainer.fast_dev_run else own  # pyright: ignore[reportAttributeAccessIssue]
        self._global_step = trainer.global_step
        if trainer.global_step == 0:
            self._engine.new_run()
        elif not self._engine.run.global_steps:
            self._engine.run.begun_before = True
        self._engine.run.shadow_step = TrainerStep(trainer, pl_module)
        self._engine.run.cannot_verify = cannot_verify(trainer, pl_module)
        self._engine.start(trainer.optimizers, trainer.num_training_batches, total_batches(trainer))

    # --- while training

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        with self.timeline.timed():
            # A checkpoint of an epoch's last step or of the validation after it was saved before that epoch's check.
            self._engine.end_epoch(trainer.current_epoch - 1)
            self._engine.before_batch(batch, train_statistics=trains_statistics_only(trainer))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._engine.before_backward(loss, only=pl_module.automatic_optimization)
        if self._engine.run.loss is not None:
            loss, parts = unscaled(trainer, self._engine.run.loss), trainer.accumulate_grad_batches
            self._engine.run.loss = loss * parts if parts > 1 else loss  # Lightning divides by them

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        with self.timeline.timed():
            unscale(trainer, getattr(optimizer, "optimizer", optimizer))
            self._engine.note_gradients(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with self.timeline.timed():
            if trains_statistics_only(trainer):
                return
            stepped = trainer.global_step != self._global_step
            self._global_step = trainer.global_step
            if self._engine.after_batch(stepped):
                self._log.log(trainer, self._engine.timeline)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.should_stop or trainer.global_step == trainer.max_steps
        last |= trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
        with self.timeline.timed():
            self._engine.end_epoch(trainer.current_epoch, last)

    # --- after training

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._engine.end()
        self._log.finish(trainer, self.timeline)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._loaded = None  # a checkpoint that was only validated is none to resume from
        if stage == "fit" and self._freezer is not None:
            self._leave(trainer, report=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        forget_late_restore(trainer)
        self._loaded = None
        if self._freezer is not None:
            interrupted = isinstance(exception, KeyboardInterrupt)
            self._leave(trainer, report=interrupted and self.timeline.steps > 0 and hasattr(self, "_global_step"))

    def _leave(self, trainer: Trainer, report: bool) -> None:
        """Nothing of the model is held any more, but what a further fit of it needs."""
        self._carried = self._engine.state_dict()  # a checkpoint that is saved on an exception goes on from here
        self._engine.end()
        self._timeline, self._epoch = self.timeline, self._engine.run.epoch
        self._timeline.fit_seconds = self._carried["timeline"]["fit_seconds"]
        self._freezer = None
        self.reset()
        for attached in _ATTACHED:
            vars(self).pop(attached, None)
        if report and self.report and trainer.is_global_zero:
            show_report(self._timeline, type(self).__name__, self._folder)

    def _knows(self, pl_module: LightningModule) -> bool:
        same = self._model is not None and self._model() is pl_module
        return same and (self._carried is None or not lost(self._carried, pl_module))

    # --- save and resume

    def state_dict(self) -> dict[str, Any]:
        """The timeline, the counters and the method's own state; tensors and plain values only."""
        if self._freezer is not None:
            return self._freezer.state_dict()
        return self._carried or self._loaded or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a saved state until ``fit`` starts, when it is checked against the model and taken up."""
        check_version(state_dict, type(self).__name__)
        self._loaded = state_dict

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_freezer", "_model", *_ATTACHED)}
