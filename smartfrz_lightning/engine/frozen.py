"""FrozenLayers: applies decisions to a model, and keeps what is frozen as it is."""

from collections.abc import Collection, Sequence

from torch import nn

from smartfrz_lightning.engine.frozen_norms import RECALIBRATION, RECALIBRATION_SHARE, FrozenNorms
from smartfrz_lightning.engine.outside import StillFrozen, frozen_here
from smartfrz_lightning.engine.processes import Processes
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.freezing.compiled import forget_graphs
from smartfrz_lightning.freezing.freeze import freeze, thaw
from smartfrz_lightning.layers.layer import Layer


class FrozenLayers:
    """The layers of a model that do not train, and all that keeps them from changing.

    Attributes:
        norms: Keeps running statistics.
    """

    def __init__(self, model: nn.Module, processes: Processes, run: TrainingRun) -> None:
        self._model, self._processes, self._run = model, processes, run
        self.norms = FrozenNorms(model)
        self._outside = StillFrozen(model)
        self._escaped: dict[str, None] = {}

    def start(self) -> None:
        """Training begins or goes on."""
        if self._run.frozen:
            freeze(self._model, self._run.frozen_layers, self._run.optimizers)
        self.watch()

    def change(self, stopped: Sequence[Layer], thawed: Sequence[Layer]) -> None:
        """Freeze some layers and let others train, on every process."""
        self._processes.before_change()
        thaw(self._model, thawed)
        freeze(self._model, stopped, self._run.optimizers)
        self._processes.after_change()
        again = {layer.name for layer in thawed}
        self._run.frozen = [name for name in self._run.frozen if name not in again]
        self._run.frozen += [layer.name for layer in stopped]
        self._run.untrained -= again
        self.watch()
        forget_graphs()

    def restore(self, later: Collection[Layer]) -> None:
        """Take up what the run says is frozen, where ``later`` layers have frozen since in this very model."""
        if self._run.frozen or later:  # the wrapper was built for a model in which others trained
            self._processes.before_change()
            thaw(self._model, later)
            freeze(self._model, self._run.frozen_layers, self._run.optimizers)
            self._processes.after_change()
            forget_graphs()
        self.watch()

    def recalibrate(self, layers: Sequence[Layer]) -> None:
        """Measure the running statistics of layers that have trained anew, if there is time for it."""
        batches = int(min(RECALIBRATION, self._run.total_batches * RECALIBRATION_SHARE))
        if self._run.batches + batches <= self._run.total_batches:
            self.norms.recalibrate([name for layer in layers for name in layer.stateful], batches)

    def watch(self) -> None:
        """Watch what is frozen now."""
        frozen = self._run.frozen_layers
        self.norms.watch(frozen)
        self._outside = StillFrozen(self._model, frozen)
        here = frozen_here(self._model)
        here.clear()
        here.update({layer.name: layer for layer in frozen})

    def gradients_ready(self) -> None:
        """Take away gradients of frozen layers that the user's code let train."""
        self._escaped |= dict.fromkeys(self._outside.hold())

    def escaped(self) -> list[str]:
        """Frozen layers that the user's code let train since this was asked last."""
        names = [name for name in self._escaped if name in self._run.frozen]
        self._escaped.clear()
        return names

    def leave_one_training(self, layers: Sequence[Layer], thawed: Sequence[Layer]) -> list[Layer]:
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
