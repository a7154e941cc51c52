"""Unit: a module of a frozen front that is looked up as a whole."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from smartfrz_lightning.cache.dropouts import dropouts
from smartfrz_lightning.cache.fingerprint import Fingerprint


class Unit:
    """A module whose parameters, if it has any, are all frozen.

    Args:
        name: Its qualified name.
        module: The module.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module, self.calls = name, module, 0
        self.begins = any(True for _ in module.parameters())  # what has none only goes on with a front
        self.fingerprint = Fingerprint(module)
        self._dropouts = dropouts(module) if self.begins else []
        self._replaced: _Forward | None = None  # one, so that the module looks the same in every batch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Its own forward pass."""
        return type(self.module).forward(self.module, *args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The same without dropout: with it, a sample would never come again."""
        active = [part for part in self._dropouts if part.training]
        try:
            for part in active:
                part.training = False
            return self.forward(*args, **kwargs)
        finally:
            for part in active:
                part.training = True

    def replace_forward(self, called: Callable) -> None:
        """Let something else be called with ``(unit, args, kwargs)`` instead, unless it has another one already."""
        if self._replaced is None or self._replaced.called != called:
            self._replaced = _Forward(self, called)
        if "forward" not in vars(self.module):
            self.module.forward = self._replaced  # type: ignore[method-assign]

    def restore_forward(self) -> None:
        """As it was."""
        if isinstance(vars(self.module).get("forward"), _Forward):
            del vars(self.module)["forward"]


class _Forward:
    """In the place of a module's ``forward``; copies and files of the module get its own."""

    def __init__(self, unit: Unit, called: Callable) -> None:
        self._unit, self.called = unit, called

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.called(self._unit, args, kwargs)

    def __reduce__(self) -> tuple:
        return getattr, (self._unit.module, "forward")


def find_units(model: nn.Module, known: dict[str, Unit], refused: Collection[str]) -> Iterator[Unit]:
    """The largest modules whose parameters are all frozen.

    Args:
        model: The model.
        known: The units until now: those that were called stay, rather than becoming part of larger ones.
        refused: Names of modules that are not to be units; their parts may be.
    """
    stay = [name for name, unit in known.items() if unit.calls]
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, path: str) -> Iterator[Unit]:
        trains = any(parameter.requires_grad or isinstance(parameter, DTensor) for parameter in module.parameters())
        is_list = type(module).forward is nn.Module.forward
        if not path or trains or is_list or path in refused or any(name.startswith(f"{path}.") for name in stay):
            for name, child in module.named_children():
                yield from walk(child, f"{path}.{name}" if path else name)
        elif module not in seen:
            seen.add(module)
            old = known.get(path)
            yield old if old is not None and old.module is module else Unit(path, module)

    yield from walk(model, "")
