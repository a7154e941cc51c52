"""What this package froze in a model, over all its trainings."""

from collections.abc import Iterable
from dataclasses import asdict, replace

from torch import nn

from smartfrz_lightning.freezing.freeze import thaw
from smartfrz_lightning.layers.layer import Layer

_MARK = "_smartfrz_frozen"


def frozen_here(model: nn.Module) -> dict[str, Layer]:
    """Layers of a model that this package froze, over all its trainings; what the user froze is not in."""
    return {name: Layer(**plain) for name, plain in model.__dict__.get(_MARK, {}).items()}


def mark_frozen(model: nn.Module, layers: Iterable[Layer]) -> None:
    """These layers of a model are what this package has frozen in it."""
    model.__dict__[_MARK] = {layer.name: asdict(layer) for layer in layers}  # a pickled model needs no class of ours


def thaw_frozen_here(model: nn.Module) -> list[str]:
    """Let them train again, as far as they are still there; returns their names."""
    layers, parameters, modules = frozen_here(model), dict(model.named_parameters()), dict(model.named_modules())

    def there(layer: Layer) -> Layer:
        known = tuple(name for name in layer.parameters if name in parameters)
        return replace(layer, parameters=known, stateful=tuple(name for name in layer.stateful if name in modules))

    left = [layer for layer in map(there, layers.values()) if layer.parameters]
    thaw(model, left)
    mark_frozen(model, ())
    return [layer.name for layer in left]
