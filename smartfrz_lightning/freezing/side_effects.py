"""What a function does besides giving a result: it writes, draws random numbers, or goes by the state of autocast."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_IN_PLACE = {f"__{name}__" for name in ("iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior", "setitem")}


def in_place(func: Callable, kwargs: dict[str, Any]) -> bool:
    """Whether a function writes into its first argument.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.freezing.side_effects import in_place
        >>> in_place(torch.Tensor.add_, {}), in_place(torch.Tensor.add, {})
        (True, False)
    """
    name = getattr(func, "__name__", "")
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")) or bool(kwargs.get("inplace"))


_SHAPES = {"view", "reshape", "expand", "broadcast_to", "repeat"}


def shapes(func: Callable) -> bool:
    """Whether the numbers among the arguments of a function are the sizes of its output.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.freezing.side_effects import shapes
        >>> shapes(torch.Tensor.view), shapes(torch.Tensor.roll)
        (True, False)
    """
    return getattr(func, "__name__", "") in _SHAPES


def autocast_of(tensors: Sequence[Tensor]) -> tuple:
    """The state of autocast on the device of some tensors: device, whether it is on, and its type.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.freezing.side_effects import autocast_of
        >>> autocast_of([torch.ones(1)])[:2]
        ('cpu', False)
    """
    device = tensors[0].device.type if tensors else "cpu"
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


@contextlib.contextmanager
def autocast_as(state: tuple) -> Iterator[None]:
    """Autocast as it was, whatever it is now.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.freezing.side_effects import autocast_as
        >>> with autocast_as(("cpu", True, torch.bfloat16)):
        ...     torch.is_autocast_enabled("cpu")
        True
    """
    device, enabled, dtype = state
    if torch.is_autocast_enabled(device) == enabled and (not enabled or torch.get_autocast_dtype(device) == dtype):
        yield
        return
    with torch.autocast(device, dtype, enabled):
        yield


def random_state(device: torch.device) -> tuple:
    """Of all generators that a module is likely to draw from.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.freezing.side_effects import random_state
        >>> len(random_state(torch.device("cpu")))
        4
    """
    own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), own, random.getstate(), tuple(np.random.get_state())[1:3]


def same_random_state(before: tuple, after: tuple) -> bool:
    """Whether nothing was drawn in between.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.freezing.side_effects import random_state, same_random_state
        >>> before = random_state(torch.device("cpu"))
        >>> same_random_state(before, random_state(torch.device("cpu")))
        True
        >>> _ = torch.rand(1)
        >>> same_random_state(before, random_state(torch.device("cpu")))
        False
    """
    cuda = before[1] is None or torch.equal(before[1], after[1])
    numpy = before[3][1] == after[3][1] and np.array_equal(before[3][0], after[3][0])
    return cuda and numpy and torch.equal(before[0], after[0]) and before[2] == after[2]
