"""What a module computes by: its tensors, its attributes and the functions among them, as pickle sees them."""

import io
import marshal
import pickle
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.cache.rows import digest
from smartfrz_lightning.private.pytorch import is_plain, module_hooks, parts, writes

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format)


class Opaque(Exception):
    """Something of which it cannot be told whether it stays the same."""


class Fingerprint:
    """Tells whether a module still computes the same function.

    All of it is read once; later calls compare which objects its attributes are, how often tensors were written to, and
    what is in the attributes that can change.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._seen, self._digest = module, None, b""
        self._contents: dict[tuple, tuple[Tensor, bytes]] = {}

    def __call__(self) -> bytes:
        """A digest of all that its output depends on besides its inputs.

        Raises:
            Opaque: It holds something that cannot be pickled, a part of it trains, or something is hooked to it.
        """
        if self._seen is None or self._glance() != self._seen:
            self._read()
        return self._digest

    def forget(self) -> None:
        """Read every value anew in the next call: what was written through ``.data`` shows in nothing else."""
        self._seen = None
        self._contents.clear()

    def _read(self) -> None:
        described = self._look = _Pickler(self._module)
        values = chain.from_iterable(map(dict.values, described.tables))
        self._held = list(values)  # so that no other object gets their id
        attributes = chain.from_iterable(vars(module).items() for module in described.modules)
        self._mutable = [value for name, value in attributes if name not in _TABLES and not _stays(value)]
        places = [(t.data_ptr(), writes(t), t.shape, t.stride(), t.dtype) for t in described.tensors]
        # Their memory is held, so that no other tensor gets the same address.
        self._contents = {
            place: self._contents.get(place) or (tensor.detach(), digest(tensor))
            for place, tensor in zip(places, described.tensors, strict=True)
        }
        self._digest = digest(described.bytes, *(self._contents[place][1] for place in places))
        self._seen = self._glance()

    def _glance(self) -> tuple:
        mutable = _Pickler(self._mutable) if self._mutable else None
        tensors = self._look.tensors
        return (
            list(map(id, chain.from_iterable(map(dict.values, self._look.tables)))),
            [(tensor.data_ptr(), writes(tensor), tensor.requires_grad) for tensor in tensors],
            mutable
            and (mutable.bytes, [(id(tensor), writes(tensor), tensor.data_ptr()) for tensor in mutable.tensors]),
            list(map(type, self._look.modules)),
            any(self._look.hooks),
        )


_TABLES = {*vars(nn.Module()), "forward"}


def _stays(value: Any) -> bool:
    """Whether a value cannot change, or shows when it does."""
    return isinstance(value, (Tensor, nn.Module, *PLAIN)) or (isinstance(value, tuple) and all(map(_stays, value)))


class _Pickler(pickle.Pickler):
    """Pickles an object without the values of its tensors, and what has no name of its own, such as a lambda.

    Attributes:
        bytes: What came out.
        tensors: In order.
        modules: In order.
        tables: Of their attributes.
        hooks: Of their hooks.
    """

    def __init__(self, obj: Any) -> None:
        file = io.BytesIO()
        super().__init__(file, protocol=4)
        self.tensors: list[Tensor] = []
        self.modules: list[nn.Module] = []
        self.tables: list[dict] = []
        self.hooks: list[dict] = []
        try:
            self.dump(obj)
        except Opaque:
            raise
        except Exception as error:  # whatever an attribute's own pickling raises
            raise Opaque(f"it holds something that cannot be compared: {error}") from None
        self.bytes = file.getvalue()

    def persistent_id(self, obj: Any) -> Any:
        if obj is None or type(obj) in (str, dict, int, bool):
            return None
        if isinstance(obj, Tensor):
            if obj.requires_grad:
                raise Opaque("it trains")
            if obj.is_meta or (obj.numel() and not is_plain(obj)):
                raise Opaque("it holds tensors without plain memory")
            self.tensors.append(obj)
            return "tensor", len(self.tensors), str(obj.device), str(obj.dtype), tuple(obj.shape)
        if isinstance(obj, nn.Module):
            self.modules.append(obj)
            self.tables += [vars(obj), *parts(obj)]
            self.hooks += module_hooks(obj).values()
            if any(self.hooks):
                raise Opaque("something is hooked to it")
        if isinstance(obj, type):
            return "class", obj.__module__, obj.__qualname__, id(obj) if "<locals>" in obj.__qualname__ else 0
        if isinstance(obj, set | frozenset):
            return "set", sorted(map(repr, obj))
        if isinstance(obj, FunctionType):
            cells = [cell.cell_contents for cell in obj.__closure__ or ()]
            return "function", marshal.dumps(obj.__code__, 2), obj.__defaults__, obj.__kwdefaults__, cells
        return None
