"""LazyTensor: stands for what a frozen front gives, and is computed, or looked up, when something else needs it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from smartfrz_lightning.private.pytorch import below_functions, placeholder


class Look(NamedTuple):
    """What a tensor looks like."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "Look":
        """That of a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


class Source(Protocol):
    """What a lazy tensor comes from."""

    def value(self, index: int) -> Tensor:
        """The tensor itself, asked for by something that is not the front's."""
        ...

    def call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A function was called with a lazy tensor."""
        ...


class LazyTensor(Tensor):
    """A tensor that has a shape, type and device, and values only once they are asked for.

    Functions of PyTorch that get one go to its source, which may answer with another lazy tensor; what comes in below
    them, and everything that asks for values, gets the tensor itself.
    """

    source: Source
    index: int
    viewed: bool
    """Whether it may share its values with another."""

    @classmethod
    def of(cls, source: Source, index: int, look: Look) -> "LazyTensor":
        """One that stands for the ``index``-th output of its source."""
        lazy = placeholder(cls, look.shape, look.stride, look.dtype, look.device)
        lazy.source, lazy.index, lazy.viewed = source, index, False
        return lazy

    def value(self) -> Tensor:
        """The tensor itself."""
        return self.source.value(self.index)

    @staticmethod
    def values(tree: Any) -> Any:
        """A nest with the tensors themselves instead of lazy ones."""
        if isinstance(tree, LazyTensor):
            return tree.value()
        if not any(True for _ in lazies(tree)):
            return tree
        if isinstance(tree, dict):
            return {key: LazyTensor.values(entry) for key, entry in tree.items()}
        entries = [LazyTensor.values(entry) for entry in tree]
        return type(tree)(*entries) if hasattr(tree, "_fields") else type(tree)(entries)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func in _GETTERS or name in _ABOUT and func in _METHODS:
            with below_functions():
                return func(*args, **kwargs)
        return next(lazies((args, kwargs))).source.call(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return func(*LazyTensor.values(args), **LazyTensor.values(kwargs or {}))


def lazies(tree: Any) -> Iterator[LazyTensor]:
    """All lazy tensors in a nest of tuples, lists and dicts."""
    if isinstance(tree, LazyTensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for entry in tree:
            yield from lazies(entry)
    elif isinstance(tree, dict):
        yield from lazies(list(tree.values()))


# What a tensor can say of itself without its values.
_KNOWN = ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "grad_fn", "grad", "is_cuda")
_KNOWN += ("is_sparse", "is_quantized", "is_meta", "is_cpu", "names", "itemsize", "nbytes", "is_nested", "output_nr")
_GETTERS = {getattr(Tensor, name).__get__ for name in _KNOWN if hasattr(getattr(Tensor, name, None), "__get__")}
_ABOUT = {"size", "dim", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex"}
_ABOUT |= {"element_size", "ndimension", "storage_offset", "__len__", "get_device", "is_signed", "is_conj", "is_neg"}
_METHODS = {getattr(Tensor, name) for name in _ABOUT} | {torch.is_floating_point, torch.is_complex, torch.numel}
