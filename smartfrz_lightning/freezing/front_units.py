"""The modules of a frozen front that are looked up as a whole."""

import contextlib
import copy
import functools
import hashlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from smartfrz_lightning.freezing.sample_keys import digest, joined
from smartfrz_lightning.private.pytorch import attributes, module_hooks, own_tensors, writes

_COMPARED = 1 << 20  # bytes of weights that are compared in every batch


class Unit:
    """A module whose parameters are all frozen.

    Args:
        name: Its qualified name.
        module: The module.

    Attributes:
        digest: Of all that makes its output but the modes of its modules: tensors, plain attributes, code.
        calls: How often it was called.
        restless: In how many batches in a row it had changed.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.forward: Callable = module.forward
        self.calls = self.restless = 0
        self._modules = list(module.modules())
        self.look()

    def look(self) -> None:
        """Take it as it is now."""
        self._modules = list(self.module.modules())
        self._places = [place for module in self._modules for place in own_tensors(module)]
        self.tensors = [tensor for _, _, tensor in self._places]
        self._samples = _samples(self.tensors)
        self._state = self.state()
        self._values = self._sampled()
        self._pieces = [piece for tensor in self.tensors for piece in _pieces(tensor)]
        self._digests = list(map(digest, self._pieces))
        self._next = 0
        about = "\n".join(map(_about, self._modules))
        own = digest(torch.frombuffer(bytearray(about.encode()), dtype=torch.uint8))
        self.digest = joined([own, *self._digests]).hex()

    @property
    def frozen(self) -> bool:
        """Whether all its parameters still are."""
        return not any(tensor.requires_grad for tensor in self.tensors)

    @property
    def same(self) -> bool:
        """Whether it is what it was when it was looked at, as far as that shows at once."""
        return self.state() == self._state and all(table.get(name) is tensor for table, name, tensor in self._places)

    def changed(self) -> bool:
        """Whether it is another than when it was looked at.

        What is written through ``.data`` shows in the values alone: a few of every tensor are compared each time, and
        all of them in turn.
        """
        if not self.same or not all(map(torch.equal, self._sampled(), self._values)):
            return True
        compared = 0
        for _ in range(len(self._pieces)):
            number, self._next = self._next, (self._next + 1) % len(self._pieces)
            piece = self._pieces[number]
            if digest(piece) != self._digests[number]:
                return True
            compared += piece.nbytes
            if compared >= _COMPARED or piece.is_cuda:  # where each one has to be waited for
                break
        return False

    def state(self) -> tuple:
        """Tensors, attributes, parts and hooks of its modules, by identity and by how often they were written to."""
        tensors = [(writes(tensor), tensor.data_ptr(), tensor.requires_grad) for tensor in self.tensors]
        return tensors, [attributes(module) for module in self._modules[1:]], attributes(self.module)[:3]

    def modes(self) -> tuple[bool, ...]:
        """Which of its modules are in training mode."""
        return tuple([module.training for module in self._modules])

    @contextlib.contextmanager
    def in_modes(self, modes: tuple[bool, ...]) -> Iterator[None]:
        """Its modules in other modes."""
        now = self.modes()
        try:
            for module, mode in zip(self._modules, modes, strict=True):
                module.training = mode
            yield
        finally:
            for module, mode in zip(self._modules, now, strict=True):
                module.training = mode

    def _sampled(self) -> list[Tensor]:
        return [torch.cat(samples) for samples in self._samples]

    def replace_forward(self, called: Callable) -> None:
        """Let something else be called with ``(unit, args, kwargs)`` instead."""
        self.module.forward = _Forward(self, called)  # type: ignore[method-assign]

    def restore_forward(self) -> None:
        """As it was."""
        if isinstance(vars(self.module).get("forward"), _Forward):
            del vars(self.module)["forward"]


class _Forward:
    """In the place of a module's ``forward``; a copy of the module gets a ``forward`` of its own."""

    def __init__(self, unit: Unit, called: Callable) -> None:
        self._unit, self._called = unit, called

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._called(self._unit, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._unit.forward, memo)

    def __reduce__(self) -> tuple:
        return getattr, (self._unit.module, "forward")


def find_units(
    model: nn.Module, refused: Collection[str], kept: Collection[str], known: Mapping[str, Unit]
) -> Iterator[Unit]:
    """The largest modules whose parameters are all frozen.

    Args:
        model: The model.
        refused: Names of modules that are not to be units; their parts may be.
        kept: Names of units that stay, rather than becoming part of larger ones.
        known: The units until now.
    """
    seen: set[int] = set()

    def walk(module: nn.Module, path: str) -> Iterator[Unit]:
        if id(module) in seen:
            return
        seen.add(id(module))
        inside = any(name.startswith(f"{path}.") for name in kept)
        if path and path not in refused and not inside and _usable(module):
            old = known.get(path)
            try:
                yield old if old is not None and old.module is module else Unit(path, module)
            except (RuntimeError, TypeError, NotImplementedError):  # sparse or quantised tensors and the like
                pass
            else:
                return
        for name, child in module.named_children():
            yield from walk(child, f"{path}.{name}" if path else name)

    yield from walk(model, "")


def _about(module: nn.Module) -> str:
    """All that a module computes by besides tensors: its class, its code, and its plain attributes."""
    plain = {
        name: value
        for name, value in sorted(vars(module).items())
        if name != "training" and isinstance(value, bool | int | float | str | tuple | None)
    }
    return f"{type(module).__module__}.{type(module).__qualname__} {_code(type(module))} {plain!r}"


@functools.cache
def _code(kind: type) -> str:
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):  # written in a prompt
        return ""


def _usable(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    if not parameters or any(p.requires_grad or isinstance(p, DTensor) for p in parameters):
        return False
    if type(module).forward is nn.Module.forward:  # a list of modules
        return False
    if any("forward" in vars(part) for part in module.modules()):  # somebody else's replacement
        return False
    # What is hooked to it would not be called, or not with values.
    return not any(any(module_hooks(part).values()) for part in module.modules())


def _pieces(tensor: Tensor) -> list[Tensor]:
    """Views of a tensor, none much larger than what is compared in a batch, where its values lie in one row."""
    own = tensor.detach()
    if own.layout != torch.strided or own.nbytes <= _COMPARED:
        return [own]
    if not own.is_contiguous():
        if not (own.ndim == 4 and own.is_contiguous(memory_format=torch.channels_last)):
            return [own]
        own = own.permute(0, 2, 3, 1)
    return list(own.view(-1).split(max(1, _COMPARED // own.element_size())))


def _samples(tensors: list[Tensor]) -> list[list[Tensor]]:
    """A few values of each floating-point tensor, as views, by type and device."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel() and tensor.layout == torch.strided:
            count = min(8, tensor.numel())
            own = tensor.detach()
            values = [own.view(-1)] if own.is_contiguous() else [own.flatten(start_dim=0)]
            if own.is_contiguous():
                groups.setdefault((tensor.dtype, tensor.device), []).append(
                    values[0][:: max(1, tensor.numel() // count)][:count]
                )
            else:
                index = (0,) * (own.ndim - 1)
                groups.setdefault((tensor.dtype, tensor.device), []).append(own[index][:count])
    return list(groups.values())


def dropouts(module: nn.Module) -> list[nn.Module]:
    """The modules inside that drop values or paths at random in training mode, and those that let functions do so."""
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
