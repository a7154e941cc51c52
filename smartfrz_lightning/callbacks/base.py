"""FreezingCallback: when to ask, agree across processes, apply, count, log, save and resume."""

import contextlib
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import Tensor

from smartfrz_lightning.callbacks.layer_callback import LayerCallback
from smartfrz_lightning.callbacks.run_length import steps_per_epoch
from smartfrz_lightning.compiled import CompileClock, allow_recompiling
from smartfrz_lightning.freezing import freeze, hold_still, renew_statistics, thaw
from smartfrz_lightning.layer_flops import layer_flops
from smartfrz_lightning.layers import Layer, front
from smartfrz_lightning.report import plot_timeline, timeline_table
from smartfrz_lightning.step_meter import StepMeter
from smartfrz_lightning.strategies import (
    after_freeze,
    before_freeze,
    before_late_restore,
    check_strategy,
    forget_late_restore,
)
from smartfrz_lightning.timeline import Compilation, FreezeEvent, Timeline, TrainingState

STATE_VERSION = 1


class FreezingCallback(LayerCallback, ABC):
    """Base of all freezing methods; a method says in :meth:`select` which active layers should stop now.

    Args:
        every_n_epochs: Ask at the end of every n-th epoch; 1 if neither interval is given.
        every_n_train_steps: Ask every n optimizer steps instead.
        exclude: Patterns of what always trains.

    Raises:
        MisconfigurationException: Both intervals are given, or one is below 1; on ``fit``: the strategy is not
            supported, or the Trainer has another callback of this kind.

    Example:
        >>> from smartfrz_lightning import FreezingCallback
        >>> from smartfrz_lightning.layers import Layer
        >>> class FreezeNext(FreezingCallback):
        ...     def select(self, trainer, pl_module, active):
        ...         return {active[0].name: 1.0}
        >>> method = FreezeNext(every_n_epochs=2, exclude=["embed"])
        >>> method.layers = [Layer("embed", (), (), (), 8, "excluded"), Layer("block", (), (), (), 8)]
        >>> method.select(None, None, method.active)
        {'block': 1.0}
    """

    works_sharded = True
    """Whether the method can do with parameters sharded over processes (FSDP2)."""

    def __init__(
        self, every_n_epochs: int | None = None, every_n_train_steps: int | None = None, exclude: Sequence[str] = ()
    ) -> None:
        super().__init__(exclude)
        if every_n_epochs is not None and every_n_train_steps is not None:
            raise MisconfigurationException(
                f"every_n_epochs={every_n_epochs} and every_n_train_steps={every_n_train_steps}: give one of them"
            )
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_train_steps", every_n_train_steps)):
            if value is not None and value < 1:
                raise MisconfigurationException(f"{name}={value}: must be at least 1")
        self.every_n_epochs = every_n_epochs if every_n_train_steps else every_n_epochs or 1
        self.every_n_train_steps = every_n_train_steps
        self._loaded: dict[str, Any] | None = None
        self._model: Any = None
        self._folder: Path | None = None
        self._reset()

    @abstractmethod
    def select(self, trainer: Trainer, pl_module: LightningModule, active: list[Layer]) -> dict[str, float]:
        """Which of the active layers should freeze now: names with a confidence. Called on rank 0 alone."""

    def on_optimizer_step_done(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called on every rank after a training batch whose optimizer stepped."""

    def on_freeze(self, names: list[str]) -> None:
        """Called on every rank after layers froze."""

    def check_due(self, trainer: Trainer) -> bool:
        """Whether to ask after this optimizer step; the same on every rank."""
        return bool(self.every_n_train_steps) and self.timeline.steps % self.every_n_train_steps == 0

    def method_state(self) -> dict[str, Any]:
        """What a method keeps in checkpoints."""
        return {}

    def load_method_state(self, state: dict[str, Any], pl_module: LightningModule) -> None:
        """Take up what :meth:`method_state` saved."""

    @property
    def frozen(self) -> list[str]:
        """Names of the layers that froze so far, in order of time."""
        return [event.layer for event in self.timeline.events]

    @property
    def active(self) -> list[Layer]:
        """Layers that train and may freeze, in forward order."""
        frozen = set(self.frozen)
        return [layer for layer in self.layers if not layer.pinned and layer.name not in frozen]

    @property
    def steps_in_run(self) -> int:
        """Optimizer steps since this run began; a second ``fit`` with a new Trainer is a run of its own."""
        return self.timeline.steps - self._begun

    # --- when to ask

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        check_strategy(trainer, type(self).__name__, self.works_sharded)
        rivals = [type(c).__name__ for c in trainer.callbacks if isinstance(c, LayerCallback) and c is not self]
        if rivals:
            raise MisconfigurationException(
                f"{type(self).__name__} and {', '.join(rivals)} in one Trainer: both would act on the same layers, "
                "keep one of them"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            self._loaded = None  # a checkpoint that was validated is none to resume from

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit_started, self._folder = time.perf_counter(), None
        same_model = self._model is not None and self._model() is pl_module
        if self._loaded is None and not same_model:
            self._reset()
        self._model = weakref.ref(pl_module)
        super().on_fit_start(trainer, pl_module)
        before_late_restore(trainer, self.state_key, lambda state: self._take_up(trainer, pl_module, state))
        self._take_up(trainer, pl_module, None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        forget_late_restore(trainer)
        self._loaded = None  # taken up before
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._checked_epoch = min(self._checked_epoch, trainer.current_epoch - 1)
        if trainer.global_step == 0:
            self._begun = self.timeline.steps
        freeze(pl_module, self._frozen_layers(), trainer.optimizers)
        self._global_step = trainer.global_step
        allow_recompiling(self._patterns)
        self._compile_clock.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint of the validation at an epoch's end was saved before that epoch's check.
        if self._due(trainer.current_epoch - 1):
            with self._timed():
                self._check(trainer, pl_module, trainer.current_epoch - 1)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        with self._timed():
            if _statistics_only(trainer):
                renew_statistics(pl_module, self._frozen_layers())
                return
            hold_still(pl_module, self._frozen_layers())
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if not self._state_known:
                self._meter = StepMeter(pl_module)
                self._meter.start()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        ends_tracing = self._tracer is not None and self._measuring and pl_module.automatic_optimization
        with self._meter.interrupted_before_backward() if ends_tracing else contextlib.nullcontext():
            super().on_before_backward(trainer, pl_module, loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.automatic_optimization:
            self._stop_measuring()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with self._timed():
            self._stop_measuring()
            self._book_compiling()
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if not self.layers or _statistics_only(trainer):
                return
            self.timeline.layers = self.layers
            self._account()
            if trainer.global_step != self._global_step:
                self._global_step = trainer.global_step
                self.timeline.steps += 1
                self.on_optimizer_step_done(trainer, pl_module)
                if self.check_due(trainer):
                    self._check(trainer, pl_module, None)
            self._log(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
        if self._due(trainer.current_epoch) and not last:
            with self._timed():
                self._check(trainer, pl_module, trainer.current_epoch)

    def _due(self, epoch: int) -> bool:
        return bool(self.layers and self.every_n_epochs) and (
            epoch > self._checked_epoch and (epoch + 1) % self.every_n_epochs == 0
        )

    # --- decide and apply

    def _check(self, trainer: Trainer, pl_module: LightningModule, epoch: int | None) -> None:
        self._book_compiling()
        if epoch is not None:
            self._checked_epoch = epoch
        if not self.active:
            return
        chosen = self.select(trainer, pl_module, self.active) if trainer.is_global_zero else {}
        chosen = trainer.strategy.broadcast(chosen)
        layers = _leave_one_training([layer for layer in self.active if layer.name in chosen], pl_module, trainer)
        if not layers:
            return
        self._note_device_peak(pl_module)
        before_freeze(trainer)
        freeze(pl_module, layers, trainer.optimizers)
        after_freeze(trainer)
        _frozen_by_us(pl_module).update(layer.name for layer in layers)
        per_epoch = steps_per_epoch(trainer)
        done = self.timeline.steps / per_epoch if per_epoch < float("inf") else float(trainer.current_epoch)
        self.timeline.events += [
            FreezeEvent(layer.name, self.timeline.steps, done, float(chosen[layer.name])) for layer in layers
        ]
        allow_recompiling(self._patterns)
        self.on_freeze([layer.name for layer in layers])

    @property
    def _patterns(self) -> int:
        """At most so many patterns of what trains has freezing brought to a function that blocks share.

        A frozen layer changes the pattern of its block, and the block behind the last one gets an input without
        gradient.
        """
        return len(self.frozen) + len({event.step for event in self.timeline.events})

    def _frozen_layers(self) -> list[Layer]:
        frozen = set(self.frozen)
        return [layer for layer in self.layers if layer.name in frozen]

    # --- count and show

    @property
    def _measuring(self) -> bool:
        return self._meter is not None and self._meter.running

    def _stop_measuring(self) -> None:
        if not self._measuring:
            return
        self._meter.stop()
        self.timeline.callback_seconds += self._meter.counter.seconds
        flops = self._meter.flops
        if flops.total > flops.forward:  # a skipped step is no measure
            self.timeline.states.append(TrainingState(self.timeline.steps, flops, self._meter.saved_bytes))

    @property
    def _state_known(self) -> bool:
        states, events = self.timeline.states, self.timeline.events
        return bool(states) and (not events or states[-1].step >= events[-1].step)

    def _account(self) -> None:
        states, layers = self.timeline.states, self.timeline.layers
        if layers and not self.timeline.costs and self._meter is not None:
            self.timeline.costs = layer_flops(layers, self._meter.counter)
        if states:
            self.timeline.spent.add(states[-1].flops)
            self.timeline.full.add(states[0].flops)

    def _note_device_peak(self, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda" and self.timeline.states:
            self.timeline.states[-1].device_bytes = torch.cuda.max_memory_allocated(pl_module.device)
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def _log(self, pl_module: LightningModule) -> None:
        frozen, states = float(len(self.timeline.events)), self.timeline.states
        pl_module.log("frozen", frozen, prog_bar=True, logger=False)
        pl_module.log_dict(
            {
                "freeze/layers": frozen,
                "freeze/front": float(len(front(self.layers, self.frozen))),
                "freeze/step_flops": states[-1].flops.total / states[0].flops.total if states else 1.0,
                "freeze/flops_saved": self.timeline.saved,
            }
        )

    def _book_compiling(self) -> None:
        count, seconds = self._compile_clock.take()
        if count:
            frozen, booked = len(self.frozen), self.timeline.compilations
            if not booked or booked[-1].frozen != frozen:
                booked.append(Compilation(frozen))
            booked[-1].count += count
            booked[-1].seconds += seconds

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note_device_peak(pl_module)
        self._compile_clock.stop()
        self._book_compiling()
        self._report(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_measuring()
        self._compile_clock.stop()
        self._book_compiling()
        forget_late_restore(trainer)
        self._loaded = None
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, KeyboardInterrupt) and self.timeline.steps and self._folder is not None:
            self._report(trainer)

    def _report(self, trainer: Trainer) -> None:
        self.timeline.fit_seconds += time.perf_counter() - self._fit_started
        self._fit_started = time.perf_counter()
        folder = self._folder
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "freeze_timeline.csv").write_text(self.timeline.to_csv())
        plot_timeline(self.timeline, folder / "freeze_timeline.png")
        Console().print(timeline_table(self.timeline, type(self).__name__))
        Console().print(f"timeline: {folder / 'freeze_timeline.csv'} and .png")

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timeline.callback_seconds += time.perf_counter() - start

    # --- save and resume

    def _reset(self) -> None:
        self.layers = []
        self.timeline = Timeline()
        self._meter: StepMeter | None = None
        self._compile_clock = CompileClock()
        self._checked_epoch = -1
        self._begun = 0
        self._global_step = 0
        self._fit_started = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The timeline, the counters and the method's own state; tensors and plain values only."""
        timeline = self.timeline.state_dict()
        timeline["fit_seconds"] += time.perf_counter() - self._fit_started
        return {
            "version": STATE_VERSION,
            "timeline": timeline,
            "checked_epoch": self._checked_epoch,
            "begun": self._begun,
            "method": self.method_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a saved state until ``fit`` starts, when it is checked against the model and taken up."""
        if state_dict.get("version") != STATE_VERSION:
            raise ValueError(
                f"the checkpoint holds a {type(self).__name__} of state version {state_dict.get('version')}, this "
                f"package reads {STATE_VERSION}: resume with the package that wrote it"
            )
        self._loaded = state_dict

    def _take_up(self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.load_state_dict(state)
        thawed = self._loaded is not None and self._resume(pl_module)
        if self.frozen or thawed:  # the strategy has wrapped a model in which others trained
            before_freeze(trainer)
            freeze(pl_module, self._frozen_layers())
            after_freeze(trainer)
            _frozen_by_us(pl_module).update(self.frozen)

    def _resume(self, pl_module: LightningModule) -> list[Layer]:
        """Take the loaded state up; returns the layers that thawed."""
        state, self._loaded = self._loaded, None
        timeline = Timeline.from_state_dict(state["timeline"])
        known = dict(pl_module.named_parameters())
        lost = [name for layer in timeline.layers for name in layer.parameters if name not in known]
        if lost:
            raise ValueError(
                f"the checkpoint's {type(self).__name__} froze layers of another model: no parameter {lost[:3]} here. "
                "Resume with the model that was saved, or without ckpt_path"
            )
        self._reset()
        self.timeline, self.layers = timeline, timeline.layers
        self._checked_epoch, self._begun = state["checked_epoch"], state["begun"]
        later = [layer for layer in self.layers if layer.name in _frozen_by_us(pl_module) - set(self.frozen)]
        thaw(pl_module, later)  # frozen in this very model, after the checkpoint was saved
        _frozen_by_us(pl_module).difference_update(layer.name for layer in later)
        if self.layers:
            self.load_method_state(state["method"], pl_module)
        return later


def _frozen_by_us(model: LightningModule) -> set[str]:
    """Layers of a model object that callbacks of this package froze, over all its fits; the user's own are not in."""
    return model.__dict__.setdefault("_layers_frozen_in_training", set())


def _statistics_only(trainer: Trainer) -> bool:
    """Whether this is the last epoch of ``StochasticWeightAveraging``: no training, all BatchNorms measure anew."""
    return getattr(trainer.fit_loop, "_skip_backward", False)


def _leave_one_training(layers: list[Layer], pl_module: LightningModule, trainer: Trainer) -> list[Layer]:
    """Take back the last layer of an optimizer that would be left with nothing to train: a GradScaler would fail."""
    layers = list(layers)
    for optimizer in trainer.optimizers:
        training = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        owned = {layer.name: {id(pl_module.get_parameter(name)) for name in layer.parameters} for layer in layers}
        if training and training <= set().union(*owned.values()):
            last = next((layer for layer in reversed(layers) if owned[layer.name] & training), None)
            layers = [layer for layer in layers if layer is not last]
    return layers
