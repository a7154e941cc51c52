"""FrozenLayers: asks a method, makes all processes agree, applies the answer, and keeps what is frozen as it is."""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import nn

from smartfrz_lightning.engine.frozen_norms import RECALIBRATION, RECALIBRATION_SHARE, FrozenNorms
from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.outside import mark_frozen
from smartfrz_lightning.engine.processes import Processes
from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.freezing.compiled import allow_recompiling, forget_graphs
from smartfrz_lightning.freezing.freeze import freeze, thaw
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.report.timeline import Timeline


class FrozenLayers:
    """The layers of a model that do not train: what changes in them and when, and all that keeps them still.

    Code of the user's that sets ``requires_grad`` on them (an ``unfreeze()``, the loops of a GAN) would let them train
    on unseen, and under DDP without being averaged. They are held for the step in which that is noticed, and are left
    alone from then on.

    Attributes:
        norms: Keeps running statistics.
        timeline: Books what changes.
    """

    def __init__(self, model: nn.Module, method: FreezingMethod, processes: Processes, run: TrainingRun) -> None:
        self._model, self._method, self._processes, self._run = model, method, processes, run
        self.timeline = Timeline()
        self.norms = FrozenNorms(model)
        self._held: dict[str, list[nn.Parameter]] = {}
        self._escaped: dict[str, None] = {}
        self._told: set[str] = set()

    def start(self) -> None:
        """Training begins or goes on."""
        if self._run.frozen:
            freeze(self._model, self._run.frozen_layers, self._run.optimizers)
        self._watch()

    def gradients_ready(self) -> None:
        """Take away gradients of frozen layers that the user's code let train."""
        for name, parameters in self._held.items():
            if any(parameter.requires_grad for parameter in parameters):
                self._escaped[name] = None
                for parameter in parameters:
                    parameter.grad = None

    def step_done(self) -> None:
        """A step is done; the method is asked if it wants to be."""
        escaped = [name for name in self._escaped if name in self._run.frozen]
        self._escaped.clear()
        if escaped:
            self._give_up(escaped)
        if self._method.check_due(self._run):
            self.check()

    def check(self) -> None:
        """Ask the method, and do what it says."""
        if not self._run.active and not (self._method.thaws and self._run.frozen):
            return
        answer = Decision.of(self._method.select(self._run)) if self._run.is_first_process else None
        self.change(self._processes.agree(answer), "select")
        self._method.decision_applied(self._run)

    def change(self, decision: Decision, where: str = "change") -> None:
        """Apply a decision that ``where`` gave, on every process; what an optimizer trains last is left to it."""
        decision, run = Decision.of(decision), self._run
        unknown = {*decision.freeze, *decision.thaw} - {layer.name for layer in run.layers}
        if unknown:
            raise ValueError(
                f"{type(self._method).__name__}.{where} returned {sorted(unknown)}, which are no layers' names"
            )
        thawed = [layer for layer in run.frozen_layers if layer.name in decision.thaw]
        chosen = [layer for layer in run.active if layer.name in decision.freeze]
        stopped = self._leave_one_training(chosen, thawed)
        for name in [layer.name for layer in chosen if layer not in stopped and layer.name not in self._told]:
            self._told.add(name)
            run.say(f"{name!r} goes on training: it is the last thing that one of the optimizers trains.")
        if not stopped and not thawed:
            return
        confidence: Mapping[str, float | None] = dict(decision.freeze)  # type: ignore[arg-type]
        now, again = {layer.name: confidence[layer.name] for layer in stopped}, [layer.name for layer in thawed]
        run.frozen = [*(name for name in run.frozen if name not in again), *now]
        run.untrained -= set(again)
        self.apply(stopped, thawed)
        run.confidence |= {name: value for name, value in now.items() if value is not None and not math.isnan(value)}
        if decision.untrained:
            run.untrained |= set(now)
        elif run.global_steps > 1:  # what is frozen before it trained has the statistics that belong to its weights
            self._recalibrate(stopped)
        self.timeline.change(now, again, run.epoch, run.global_steps)
        allow_recompiling(self.timeline.patterns)
        self._method.changed(run, list(now), again)

    def set_layers(self, layers: Sequence[Layer]) -> None:
        """These are the layers from now on."""
        self._run.layers = self.timeline.layers = list(layers)

    def apply(self, stopped: Sequence[Layer], thawed: Collection[Layer]) -> None:
        """Freeze some layers and let others train, on every process; the run says by now what is frozen."""
        self._processes.before_change()
        thaw(self._model, thawed)
        freeze(self._model, stopped, self._run.optimizers)
        self._processes.after_change()
        self._watch()
        forget_graphs()

    def _watch(self) -> None:
        frozen = self._run.frozen_layers
        self.norms.watch(frozen)
        self._held = {layer.name: [self._model.get_parameter(name) for name in layer.parameters] for layer in frozen}
        mark_frozen(self._model, frozen)

    def _recalibrate(self, layers: Sequence[Layer]) -> None:
        """Measure the running statistics of layers that have trained anew, if there is time for it."""
        batches = int(min(RECALIBRATION, self._run.total_batches * RECALIBRATION_SHARE))
        if self._run.batches + batches <= self._run.total_batches:
            self.norms.recalibrate([name for layer in layers for name in layer.stateful], batches)

    def _leave_one_training(self, layers: Sequence[Layer], thawed: Sequence[Layer]) -> list[Layer]:
        """Take back the last layer of an optimizer that would have nothing left to train: a GradScaler would fail."""
        layers = list(layers)
        fresh = {id(self._model.get_parameter(name)) for layer in thawed for name in layer.parameters}
        for optimizer in self._run.optimizers:
            held = [p for group in optimizer.param_groups for p in group["params"]]
            training = {id(p) for p in held if p.requires_grad or id(p) in fresh}
            owned = {layer.name: {id(self._model.get_parameter(name)) for name in layer.parameters} for layer in layers}
            if training and training <= set().union(*owned.values()):
                last = next((layer for layer in reversed(layers) if owned[layer.name] & training), None)
                layers = [layer for layer in layers if layer is not last]
        return layers

    def _give_up(self, names: Collection[str]) -> None:
        """Layers that the user's code thawed train again, and are left alone from now on."""
        first = ", ".join(list(names)[:3])
        warnings.warn(
            f"something set requires_grad=True on {len(names)} layers that {type(self._method).__name__} had frozen "
            f"({first}): they train again and are left alone from now on. Name them in exclude, or do not set "
            "requires_grad on parameters that do not have it",
            stacklevel=2,
        )
        self.set_layers(
            [replace(layer, always_trains="thawed") if layer.name in names else layer for layer in self._run.layers]
        )
        self.change(Decision(thaw=names))
