"""The modules of a frozen front that are looked up as a whole."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from smartfrz_lightning.freezing.fingerprint import Fingerprint, Opaque
from smartfrz_lightning.private.pytorch import module_hooks


class Unit:
    """A module whose parameters, if it has any, are all frozen.

    Args:
        name: Its qualified name.
        module: The module.

    Attributes:
        forward: Its own forward pass.
        fingerprint: A digest of what it computes by.
        called: Whether it was called.
        calls: How often it was called as a part of the front.

    Raises:
        Opaque: It holds something mutable that cannot be described.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.forward: Callable = module.forward
        self.fingerprint = Fingerprint(module)
        self.begins = any(True for _ in module.parameters())
        """Whether a front may begin with it: what has no parameters only goes on with one."""
        self.called, self.calls = False, 0
        self._replaced: _Forward | None = None  # one, so that the module looks the same in every batch

    def replace_forward(self, called: Callable) -> None:
        """Let something else be called with ``(unit, args, kwargs)`` instead."""
        if self._replaced is None or self._replaced.called != called:
            self._replaced = _Forward(self, called)
        self.module.forward = self._replaced  # type: ignore[method-assign]

    def restore_forward(self) -> None:
        """As it was."""
        if isinstance(vars(self.module).get("forward"), _Forward):
            del vars(self.module)["forward"]


class _Forward:
    """In the place of a module's ``forward``; a copy of the module gets a ``forward`` of its own."""

    def __init__(self, unit: Unit, called: Callable) -> None:
        self._unit, self.called = unit, called

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.called(self._unit, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._unit.forward, memo)

    def __reduce__(self) -> tuple:
        return getattr, (self._unit.module, "forward")


def find_units(model: nn.Module, known: Mapping[str, Unit], refused: dict[str, str]) -> Iterator[Unit]:
    """The largest modules whose parameters are all frozen.

    Args:
        model: The model.
        known: The units until now: those that were called stay, rather than becoming part of larger ones.
        refused: Names of modules that are not to be units, with the reason; their parts may be. Gets more of them.
    """
    stay: Collection[str] = [name for name, unit in known.items() if unit.calls]
    seen: set[int] = set()

    def walk(module: nn.Module, path: str) -> Iterator[Unit]:
        if id(module) in seen:
            return
        seen.add(id(module))
        around = any(name.startswith(f"{path}.") for name in stay)
        if path and path not in refused and not around and _usable(module):
            old = known.get(path)
            try:
                yield old if old is not None and old.module is module else Unit(path, module)
            except Opaque as error:
                refused[path] = str(error)
            except (RuntimeError, TypeError, NotImplementedError):
                refused[path] = "it has sparse or quantised tensors"
            else:
                return
        for name, child in module.named_children():
            yield from walk(child, f"{path}.{name}" if path else name)

    yield from walk(model, "")


def _usable(module: nn.Module) -> bool:
    if any(parameter.requires_grad or isinstance(parameter, DTensor) for parameter in module.parameters()):
        return False
    if type(module).forward is nn.Module.forward:  # a list of modules
        return False
    # What is hooked to it would not be called; a replaced forward pass is somebody else's.
    return not any("forward" in vars(part) or any(module_hooks(part).values()) for part in module.modules())
