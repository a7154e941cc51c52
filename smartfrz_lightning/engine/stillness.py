"""Holding the running statistics of frozen layers still."""

from collections.abc import Iterable

from torch import nn

from smartfrz_lightning.layers.layer import Layer


class Stillness:
    """The modules of frozen layers that would move in training mode (BatchNorm, spectral norm), kept in eval mode.

    Args:
        model: The model.
        layers: What is frozen.

    Example:
        >>> from smartfrz_lightning.engine.stillness import Stillness
        >>> from smartfrz_lightning.layers import Layer
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout())
        >>> still = Stillness(net, [Layer("0", ("0.weight",), ("0.weight",), stateful=("1",), size=216)])
        >>> still.hold()
        >>> [module.training for module in net]
        [True, False, True]
    """

    def __init__(self, model: nn.Module, layers: Iterable[Layer] = ()) -> None:
        self._modules = [model.get_submodule(name) for layer in layers for name in layer.stateful]

    def hold(self) -> None:
        """Put back to eval mode what was put to training mode since, as ``model.train()`` does."""
        for module in self._modules:
            if module.training:
                module.training = False

    def let_go(self) -> None:
        """Let the statistics be measured anew."""
        for module in self._modules:
            module.training = True
