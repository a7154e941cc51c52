"""FreezingCallback: when to ask, agree across processes, apply, log, save and resume."""

import contextlib
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import Tensor

from smartfrz_lightning.callbacks.layer_callback import LayerCallback
from smartfrz_lightning.callbacks.run_length import steps_per_epoch
from smartfrz_lightning.freezing.compiled import allow_recompiling, forget_graphs
from smartfrz_lightning.freezing.freeze import freeze, hold_still, renew_statistics, thaw
from smartfrz_lightning.freezing.strategies import (
    after_freeze,
    before_freeze,
    before_late_restore,
    check_strategy,
    forget_late_restore,
)
from smartfrz_lightning.layers.layer import Layer, front
from smartfrz_lightning.report.ledger import Ledger
from smartfrz_lightning.report.show import plot_timeline, timeline_table
from smartfrz_lightning.report.timeline import Timeline

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
        >>> from smartfrz_lightning.layers.layer import Layer
        >>> class FreezeNext(FreezingCallback):
        ...     def select(self, trainer, pl_module, active):
        ...         return [active[0].name]
        >>> method = FreezeNext(every_n_epochs=2, exclude=["embed"])
        >>> method.layers = [Layer("embed", (), (), (), 8, "excluded"), Layer("block", (), (), (), 8)]
        >>> method.select(None, None, method.active)
        ['block']
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
    def select(self, trainer: Trainer, pl_module: LightningModule, active: list[Layer]) -> Collection[str]:
        """Names of the active layers that should freeze now. Called on rank 0 alone.

        A method that is more or less sure of a layer returns a dict, with its confidence in each, 0 to 1.
        """

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
    def timeline(self) -> Timeline:
        """What froze when, and what it saved."""
        return self._ledger.timeline

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
        self._folder = None
        same_model = self._model is not None and self._model() is pl_module
        if self._loaded is None and not same_model:
            self._reset()
        self._model = weakref.ref(pl_module)
        self._ledger.start_fit()
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
        self._ledger.start_training()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint of the validation at an epoch's end was saved before that epoch's check.
        if self._due(trainer.current_epoch - 1):
            with self._ledger.timed():
                self._check(trainer, pl_module, trainer.current_epoch - 1)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        with self._ledger.timed():
            if _statistics_only(trainer):
                renew_statistics(pl_module, self._frozen_layers())
                return
            hold_still(pl_module, self._frozen_layers())
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            self._ledger.before_batch(pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        knows_backward = self._ledger.measuring and pl_module.automatic_optimization
        with self._ledger.interrupted_before_backward() if knows_backward else contextlib.nullcontext():
            super().on_before_backward(trainer, pl_module, loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.automatic_optimization:
            self._ledger.after_backward()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with self._ledger.timed():
            self._ledger.after_backward()
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if not self.layers or _statistics_only(trainer):
                return
            self._ledger.after_batch(self.layers)
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
            with self._ledger.timed():
                self._check(trainer, pl_module, trainer.current_epoch)

    def _due(self, epoch: int) -> bool:
        return bool(self.layers and self.every_n_epochs) and (
            epoch > self._checked_epoch and (epoch + 1) % self.every_n_epochs == 0
        )

    # --- decide and apply

    def _check(self, trainer: Trainer, pl_module: LightningModule, epoch: int | None) -> None:
        if epoch is not None:
            self._checked_epoch = epoch
        if not self.active:
            return
        chosen = self._select(trainer, pl_module) if trainer.is_global_zero else {}
        chosen = trainer.strategy.broadcast(chosen)
        if unknown := set(chosen) - {layer.name for layer in self.layers}:
            raise ValueError(f"{type(self).__name__}.select returned {sorted(unknown)}, which are no layers' names")
        layers = _leave_one_training([layer for layer in self.active if layer.name in chosen], pl_module, trainer)
        if not layers:
            return
        self._ledger.note_device_peak(pl_module.device)
        before_freeze(trainer)
        freeze(pl_module, layers, trainer.optimizers)
        after_freeze(trainer)
        _frozen_by_us(pl_module).update(layer.name for layer in layers)
        per_epoch = steps_per_epoch(trainer)
        done = self.timeline.steps / per_epoch if per_epoch < float("inf") else float(trainer.current_epoch)
        self._ledger.freeze({layer.name: chosen[layer.name] for layer in layers}, done)
        forget_graphs()
        self._ledger.start_training()  # forgetting stops the count of compilations
        allow_recompiling(self._patterns)
        self.on_freeze([layer.name for layer in layers])

    def _select(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float | None]:
        chosen = self.select(trainer, pl_module, self.active)
        if isinstance(chosen, Mapping):
            return {name: float(confidence) for name, confidence in chosen.items()}
        return dict.fromkeys(chosen)

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

    # --- show

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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ledger.note_device_peak(pl_module.device)
        self._ledger.stop()
        self._report(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._ledger.stop()
        forget_late_restore(trainer)
        self._loaded = None
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, KeyboardInterrupt) and self.timeline.steps and self._folder is not None:
            self._report(trainer)

    def _report(self, trainer: Trainer) -> None:
        self._ledger.end_fit()
        if not trainer.is_global_zero:
            return
        shown = [timeline_table(self.timeline, type(self).__name__)]
        if not trainer.fast_dev_run:  # that leaves no files
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "freeze_timeline.csv").write_text(self.timeline.to_csv())
            plot_timeline(self.timeline, self._folder / "freeze_timeline.png")
            shown.append(f"timeline: {self._folder / 'freeze_timeline.csv'} and .png")
        Console().print(*shown, sep="\n")

    # --- save and resume

    def _reset(self) -> None:
        self.layers = []
        self._ledger = Ledger()
        self._checked_epoch = -1
        self._begun = 0
        self._global_step = 0

    def state_dict(self) -> dict[str, Any]:
        """The timeline, the counters and the method's own state; tensors and plain values only."""
        return {
            "version": STATE_VERSION,
            "timeline": self._ledger.state_dict(),
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
            forget_graphs()
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
        self._ledger, self.layers = Ledger(timeline), timeline.layers
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
