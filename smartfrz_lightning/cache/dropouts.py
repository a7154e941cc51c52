"""The modules that drop values at random while they train."""

from torch import nn


def dropouts(module: nn.Module) -> list[nn.Module]:
    """Those inside that drop values or paths in training mode, and those that let functions do so."""
    return [part for part in module.modules() if _drops(part) or _hands_on(part)]


def _drops(module: nn.Module) -> bool:
    return any(word in type(module).__name__ for word in ("Drop", "StochasticDepth"))


def _hands_on(module: nn.Module) -> bool:
    """Whether a module gives a dropout probability to a function, as attention does."""
    if type(module) in (nn.Sequential, nn.ModuleList):
        return False
    if isinstance(getattr(module, "dropout", None), float):
        return True
    # In attention, the probability is that of a child; its other children are layers, whose own mode is their own.
    return "Attention" in type(module).__name__ and any(map(_drops, module.children()))
