"""Placeholder: stands for what a module of the frozen front gives, until something else touches it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from smartfrz_lightning.private.pytorch import below_functions, empty_subclass, tree_map_only


class Placeholder(Tensor):
    """A tensor with a shape, type and device, whose values may not have been computed.

    Whatever touches it, but another module of the front, gets the real tensor, and does to that what it does.

    Attributes:
        call: The call of a module that gives it.
        slot: Which of its outputs it is.
        given: The real tensor, once something has touched it.
    """

    call: Any
    slot: int
    given: Tensor | None

    @classmethod
    def of(cls, call: Any, slot: int, like: Tensor) -> "Placeholder":
        """One for an output of a call, whose rows are as those of a tensor."""
        new = empty_subclass(cls, (call.batch, *like.shape[1:]), like.dtype, like.device)
        new.call, new.slot, new.given = call, slot, None
        return new

    def touch(self) -> Tensor:
        """The real tensor, which it is from now on: whoever asks may write to it."""
        given = self.given
        if given is None:
            given = self.given = self.call.give(self.call, self.slot)
        return given

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("call", "slot", "given"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.touch(), name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.touch(), name)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func in _ABOUT and isinstance(args[0], Placeholder) and args[0].given is None:
            with below_functions():
                return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Placeholder, Placeholder.touch, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Placeholder, Placeholder.touch, (args, kwargs or {}))
        return func(*args, **kwargs)


def touched(value: Any) -> Any:
    """The real tensor in the place of a placeholder."""
    return value.touch() if isinstance(value, Placeholder) else value


_ABOUT = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda")}
_ABOUT |= {Tensor.size, Tensor.dim, Tensor.is_floating_point}
