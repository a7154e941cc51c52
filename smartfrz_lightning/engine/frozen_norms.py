"""Holding the running statistics of frozen layers still, once they are those of the frozen weights."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.private.pytorch import BatchNorm

RECALIBRATION = 20
"""Batches over which the statistics of a BatchNorm that froze are measured anew, at most."""

RECALIBRATION_SHARE = 0.02
"""The same as a share of the run."""


class FrozenNorms:
    """The modules of frozen layers that would move in training mode (BatchNorm, spectral norm), kept in eval mode.

    A BatchNorm that goes to eval mode while it trains changes from the statistics of each batch to running ones, which
    are those of weights that are gone: on EfficientNet-Lite0 that raised the loss of the same batch by a tenth to a
    half. So it goes on with the statistics of each batch for some batches more and takes the mean of those as its
    running ones, before it goes to eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._recalibrating: dict[str, dict[str, Any]] = {}
        self._modules: list[nn.Module] = []
        self._kept: dict[nn.Module, dict[str, Tensor]] = {}  # what these hold

    def watch(self, layers: Iterable[Layer]) -> None:
        """These layers are frozen now; those whose statistics are being measured go on."""
        names = [name for layer in layers for name in layer.stateful]
        for name in set(self._recalibrating) - set(names):
            self._finish(name)
        self._modules = [self._model.get_submodule(name) for name in names if name not in self._recalibrating]
        self._kept.clear()

    def recalibrate(self, names: Iterable[str], batches: int) -> None:
        """Measure the statistics of the BatchNorms among these modules anew, then hold them still.

        Without a momentum, as it is meanwhile, an InstanceNorm would not move its own at all.
        """
        for name in names:
            module = self._model.get_submodule(name)
            if batches < 1 or not isinstance(module, BatchNorm) or not module.track_running_stats:
                continue
            count = module.num_batches_tracked
            assert count is not None and module.running_mean is not None and module.running_var is not None
            self._recalibrating[name] = {"left": batches, "momentum": module.momentum}
            self._modules.remove(module)
            # The next batch takes the place of these; whoever validates, or ends, before it comes has them.
            count.zero_()
            if not (module.running_mean.isfinite().all() and module.running_var.isfinite().all()):
                module.reset_running_stats()
            self._begin(name)

    def keep_still(self) -> None:
        """Put back to eval mode what was put to training mode since, as ``model.train()`` does."""
        for module in self._modules:
            if module.training:
                module.training = False
            if module not in self._kept:
                self._kept[module] = {name: buffer.clone() for name, buffer in module.named_buffers(recurse=False)}
        for name in self._recalibrating:
            self._model.get_submodule(name).training = True

    def release(self) -> None:
        """Let the statistics be measured anew."""
        for module in self._modules:
            module.training = True

    def batch_done(self, agree: Callable[[Any], Any] = lambda value: value) -> None:
        """A training batch is over."""
        for module in self._modules:
            if module.training:  # by a train() within the batch
                module.training = False
                for name, buffer in module.named_buffers(recurse=False):
                    buffer.copy_(self._kept[module][name])
        for about in self._recalibrating.values():
            about["left"] -= 1
        done = [name for name, about in self._recalibrating.items() if about["left"] <= 0]
        for name in done:
            module = self._finish(name)
            module.training = False
            self._modules.append(module)
            own = dict(module.named_buffers(recurse=False))
            for key, tensor in agree({key: tensor.cpu() for key, tensor in own.items()}).items():
                own[key].copy_(tensor)

    def end(self) -> None:
        """Training is over: what has not done goes to eval mode with what it has."""
        for name in list(self._recalibrating):
            self._finish(name).training = False

    def _begin(self, name: str) -> None:
        norm = self._norm(name)
        norm.training, norm.momentum = True, None  # the plain mean of all batches since the reset

    def _finish(self, name: str) -> BatchNorm:
        norm = self._norm(name)
        norm.momentum = self._recalibrating.pop(name)["momentum"]
        return norm

    def _norm(self, name: str) -> BatchNorm:
        module = self._model.get_submodule(name)
        assert isinstance(module, BatchNorm), "nothing else is measured anew"
        return module

    def state_dict(self) -> dict[str, Any]:
        """Modules whose statistics are being measured, and for how long."""
        return {name: dict(about) for name, about in self._recalibrating.items()}

    def load_state_dict(self, state: dict[str, Any], layers: Iterable[Layer]) -> None:
        """Go on measuring."""
        self._recalibrating = {name: dict(about) for name, about in state.items()}
        self.watch(layers)
        for name in self._recalibrating:
            self._begin(name)
