"""Noticing what the user's own code thaws of what this package froze."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn

from smartfrz_lightning.freezing.freeze import thaw
from smartfrz_lightning.layers.layer import Layer

_MARK = "_smartfrz_frozen"


def frozen_here(model: nn.Module) -> dict[str, Layer]:
    """Layers of a model that this package froze, over all its trainings; what the user froze is not in."""
    return model.__dict__.setdefault(_MARK, {})


def thaw_frozen_here(model: nn.Module) -> list[str]:
    """Let them train again, as far as they are still there; returns their names."""
    layers, parameters, modules = frozen_here(model), dict(model.named_parameters()), dict(model.named_modules())

    def there(layer: Layer) -> Layer:
        known = tuple(name for name in layer.parameters if name in parameters)
        return replace(layer, parameters=known, stateful=tuple(name for name in layer.stateful if name in modules))

    left = [layer for layer in map(there, layers.values()) if layer.parameters]
    thaw(model, left)
    layers.clear()
    return [layer.name for layer in left]


class StillFrozen:
    """Watches that frozen parameters stay frozen.

    Code that sets ``requires_grad`` on them (an ``unfreeze()``, the loops of a GAN) would let them train on unseen, and
    under DDP without being averaged. They are held for the step in which that is noticed; what then becomes of them is
    the engine's affair.
    """

    def __init__(self, model: nn.Module, layers: Iterable[Layer] = ()) -> None:
        self._parameters: Mapping[str, list[nn.Parameter]] = {
            layer.name: [model.get_parameter(name) for name in layer.parameters] for layer in layers
        }
        self._all = [parameter for parameters in self._parameters.values() for parameter in parameters]

    def hold(self) -> list[str]:
        """Take the gradients of frozen layers away that should have none; returns those layers."""
        for parameter in self._all:
            if parameter.requires_grad:
                break
        else:
            return []
        thawed = [name for name, own in self._parameters.items() if any(one.requires_grad for one in own)]
        for name in thawed:
            for parameter in self._parameters[name]:
                parameter.grad = None
        return thawed
