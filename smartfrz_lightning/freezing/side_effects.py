"""What a function does besides giving a result: it writes, draws random numbers, or goes by the state of autocast."""

import contextlib
import functools
import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smartfrz_lightning.private.pytorch import TorchDispatchMode

_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_IN_PLACE = {f"__i{name}__" for name in _OPERATORS} | {"__setitem__"}


@functools.cache
def _place_of_inplace(func: Callable) -> int | None:
    try:
        names = list(inspect.signature(func).parameters)
    except (ValueError, TypeError):  # a builtin
        return None
    return names.index("inplace") if "inplace" in names else None


def in_place(func: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a function writes into its first argument."""
    name = getattr(func, "__name__", "")
    place = _place_of_inplace(func)
    if place is not None and len(args) > place and args[place] is True:
        return True
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")) or bool(kwargs.get("inplace"))


_SHAPES = {"view", "reshape", "expand", "broadcast_to", "repeat"}


_HANDS_OUT = {"numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage", "requires_grad_", "set_"}
_HANDS_OUT |= {"retain_grad", "register_hook", "register_post_accumulate_grad_hook", "grad", "backward"}
_SELECTS = {"nonzero", "masked_select", "unique", "unique_consecutive", "repeat_interleave", "argwhere", "bincount"}


def hands_out(func: Callable) -> bool:
    """Whether a function lets a tensor's values be written to elsewhere, or asks for its gradient."""
    return getattr(func, "__name__", "") in _HANDS_OUT


def selects(func: Callable, inputs: Sequence[Tensor]) -> bool:
    """Whether the size of a function's output depends on values."""
    name = getattr(func, "__name__", "")
    return name in _SELECTS or (name == "__getitem__" and any(tensor.dtype == torch.bool for tensor in inputs[1:]))


class Decisions(TorchDispatchMode):
    """Sees whether values are looked at: in the flow of the program, or for the size of a result."""

    def __init__(self) -> None:
        super().__init__()
        self.made = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        self.made |= by_mask or name in _DECIDES
        return func(*args, **(kwargs or {}))


_DECIDES = {"_local_scalar_dense", "_pack_padded_sequence", "_pad_packed_sequence", "_unique2", "unique_dim", *_SELECTS}


def changes_shape(func: Callable) -> bool:
    """Whether a function changes the shape of its input in place."""
    return getattr(func, "__name__", "") in _RESHAPES


_RESHAPES = {"unsqueeze_", "squeeze_", "t_", "transpose_", "resize_", "as_strided_", "swapaxes_", "swapdims_"}


def takes_sizes(func: Callable) -> bool:
    """Whether the numbers among the arguments of a function are the sizes of its output."""
    return getattr(func, "__name__", "") in _SHAPES


def autocast_of(tensors: Sequence[Tensor]) -> tuple:
    """The state of autocast on the device of some tensors: device, whether it is on, and its type."""
    device = tensors[0].device.type if tensors else "cpu"
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


@contextlib.contextmanager
def autocast_as(state: tuple) -> Iterator[None]:
    """Autocast as it was, whatever it is now."""
    device, enabled, dtype = state
    if torch.is_autocast_enabled(device) == enabled and (not enabled or torch.get_autocast_dtype(device) == dtype):
        yield
        return
    with torch.autocast(device, dtype, enabled):
        yield


def random_state(device: torch.device) -> tuple:
    """Of all generators that a module is likely to draw from."""
    own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), own, random.getstate(), tuple(np.random.get_state())[1:3]


def same_random_state(before: tuple, after: tuple) -> bool:
    """Whether nothing was drawn in between."""
    cuda = before[1] is None or torch.equal(before[1], after[1])
    numpy = before[3][1] == after[3][1] and np.array_equal(before[3][0], after[3][0])
    return cuda and numpy and torch.equal(before[0], after[0]) and before[2] == after[2]
