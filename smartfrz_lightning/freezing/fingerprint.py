"""What a module computes by: its tensors, its plain attributes, its code."""

import functools
import hashlib
import inspect
from enum import Enum
from itertools import chain
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.freezing.sample_keys import digest, joined
from smartfrz_lightning.private.pytorch import module_hooks, own_tensors, parts, writes

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)
_OF_MODULES = {name for name in vars(nn.Module()) if name != "training"} | {"forward", "_flat_weight_refs"}


def is_plain_value(value: Any) -> bool:
    """Whether a value never changes and is compared by what it says."""
    return value is None or isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(is_plain_value, value)))


class Opaque(Exception):
    """Something of which it cannot be told whether it stays the same."""


class Fingerprint:
    """Tells whether a module still computes the same function.

    Args:
        module: The module.

    Raises:
        Opaque: It holds something mutable that cannot be described.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._contents: dict[tuple, tuple[Tensor, bytes]] = {}
        self._look()

    def __call__(self) -> bytes:
        """A digest of all that its output depends on besides its inputs.

        Raises:
            Opaque: It cannot be told any more, or something is hooked to the module.
        """
        if self._glance() != self._seen:
            self._look()
        return self._digest

    def read_again(self) -> None:
        """Read every value anew: what was written through ``.data`` shows in nothing else."""
        self._contents.clear()
        self._look()

    def _look(self) -> None:
        self._modules = list(self._module.modules())
        self._tables = [table for module in self._modules for table in (vars(module), *parts(module))]
        self._held = list(chain.from_iterable(map(dict.values, self._tables)))  # so that no other object gets their id
        self._hooks = [table for module in self._modules for table in module_hooks(module).values()]
        if any(self._hooks):
            raise Opaque("something is hooked to it")
        self._tensors = [tensor for module in self._modules for _, _, tensor in own_tensors(module)]
        self._mutable: list[Any] = []
        about: list[Any] = [name for name, _ in self._module.named_modules(remove_duplicate=False)]
        about += [self._modules.index(part) for _, part in self._module.named_modules(remove_duplicate=False)]
        for module in self._modules:
            if module is not self._module and "forward" in vars(module):
                raise Opaque("the forward pass of a part of it was replaced")
            about.append(_closures(type(module)))
            for name, value in vars(module).items():
                if name in _OF_MODULES:
                    continue
                try:
                    about.append((name, _described(value, self._tensors, set())))
                except Opaque as error:
                    raise Opaque(f"it holds {error} in the attribute {name!r}") from None
                if not is_plain_value(value):
                    self._mutable.append(value)
        if any(tensor.requires_grad for tensor in self._tensors):
            raise Opaque("it trains")
        # Their memory is held, so that no other tensor gets the same address.
        self._contents = {where: self._content(where, tensor) for where, tensor in map(_where, self._tensors)}
        contents = [self._contents[where][1] for where, _ in map(_where, self._tensors)]
        text = repr((torch.__version__, [_code(type(module)) for module in self._modules], about))
        self._digest = joined([hashlib.blake2b(text.encode(), digest_size=16).digest(), *contents])
        self._seen = self._glance()

    def _content(self, where: tuple, tensor: Tensor) -> tuple[Tensor, bytes]:
        return self._contents[where] if where in self._contents else (tensor.detach(), digest(tensor))

    def _glance(self) -> tuple:
        """What can be compared in every call: identities, versions, and what is in mutable attributes."""
        inside: list[Tensor] = []
        return (
            list(map(id, chain.from_iterable(map(dict.values, self._tables)))),
            [(writes(tensor), tensor.data_ptr(), tensor.requires_grad) for tensor in self._tensors],
            [_described(value, inside, set()) for value in self._mutable],
            [(id(tensor), writes(tensor), tensor.data_ptr()) for tensor in inside],
            any(self._hooks),
        )


def _where(tensor: Tensor) -> tuple[tuple, Tensor]:
    """A tensor, behind where it lies and how often it was written to."""
    return (id(tensor), writes(tensor), tensor.data_ptr()), tensor


def _described(value: Any, tensors: list[Tensor], seen: set[int]) -> Any:
    """A value as plain data; its tensors are appended."""
    if is_plain_value(value):
        return type(value).__name__, repr(value)
    if id(value) in seen:
        return "again"
    seen.add(id(value))
    kind = type(value)
    if isinstance(value, Tensor):
        tensors.append(value)
        return "tensor"
    if isinstance(value, list | tuple):
        return kind.__name__, [_described(entry, tensors, seen) for entry in value]
    if isinstance(value, set | frozenset):
        return kind.__name__, sorted(str(_described(entry, tensors, seen)) for entry in value)
    if isinstance(value, dict):
        return kind.__name__, [(str(key), _described(entry, tensors, seen)) for key, entry in value.items()]
    if isinstance(value, type | BuiltinFunctionType | Enum):
        return f"{value}"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        given = [value.__defaults__, value.__kwdefaults__]
        return value.__qualname__, _instructions(value.__code__), _described([cells, given], tensors, seen)
    if isinstance(value, functools.partial):
        return "partial", _described([value.func, value.args, value.keywords], tensors, seen)
    plain = (kind.__reduce__, kind.__reduce_ex__) == (object.__reduce__, object.__reduce_ex__)
    if isinstance(value, nn.Module) or not plain or not hasattr(value, "__dict__"):
        raise Opaque(f"a {kind.__name__}")
    return kind.__qualname__, _code(kind), _described(vars(value), tensors, seen)


def _instructions(code: CodeType) -> list[Any]:
    """What a function does, with its constants and the functions inside of it."""
    inside = [_instructions(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts]
    return [code.co_code.hex(), code.co_names, inside]


def _closures(kind: type) -> list[Any]:
    """What the methods of a class, but PyTorch's, take from the function that made it."""
    methods = [value for base in kind.__mro__ if not _is_of_torch(base) for value in vars(base).values()]
    cells = [cell for value in methods if isinstance(value, FunctionType) for cell in value.__closure__ or ()]
    values = [cell.cell_contents for cell in cells]
    return [
        _described(value, [], set()) for value in values if is_plain_value(value) or isinstance(value, FunctionType)
    ]


def _is_of_torch(kind: type) -> bool:
    return kind.__module__.split(".")[0] in ("torch", "builtins", "typing", "abc")


@functools.cache
def _code(kind: type) -> str:
    """Name and digest of the source of a class and of those that it derives from, but PyTorch's."""
    own = [base for base in kind.__mro__ if not _is_of_torch(base)]
    text = f"{kind.__module__}.{kind.__qualname__}"
    for base in own:
        try:
            text += hashlib.blake2b(inspect.getsource(base).encode(), digest_size=8).hexdigest()
        except (OSError, TypeError):  # written in a prompt
            text += base.__qualname__
    return text
