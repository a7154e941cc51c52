"""The modules of a frozen front that are looked up as a whole."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from smartfrz_lightning.freezing.sample_keys import digest, joined
from smartfrz_lightning.private.pytorch import module_hooks, own_tensors, writes


class Unit:
    """A module whose parameters are all frozen.

    Args:
        name: Its qualified name.
        module: The module.

    Attributes:
        digest: Of all that makes its output: parameters, buffers, and the modes of its modules.
        calls: How often it was called.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.freezing.front_units import Unit
        >>> unit = Unit("0", nn.Linear(2, 2).requires_grad_(False))
        >>> unit.changed()
        False
        >>> _ = unit.module.weight.data.add_(1)
        >>> unit.changed()
        True
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.forward: Callable = module.forward
        self.calls = 0
        self._own_forward = module.__dict__.get("forward")
        self._modules = list(module.modules())
        self.look()

    def look(self) -> None:
        """Take it as it is now."""
        self._places = [place for module in self._modules for place in own_tensors(module)]
        self.tensors = [tensor for _, _, tensor in self._places]
        self._samples = _samples(self.tensors)
        self._state = self._now()
        self._values = self._sampled()
        kinds = repr([(type(module).__qualname__, module.training) for module in self._modules])
        about = digest(torch.frombuffer(bytearray(kinds.encode()), dtype=torch.uint8))
        self.digest = joined([about, *map(digest, self.tensors)]).hex()

    @property
    def frozen(self) -> bool:
        """Whether all its parameters still are."""
        return not any(tensor.requires_grad for tensor in self.tensors)

    def intact(self) -> bool:
        """Whether its parameters and buffers are those that it was looked at with; a functional call has others."""
        return all(table.get(name) is tensor for table, name, tensor in self._places)

    def changed(self) -> bool:
        """Whether it is another than when it was looked at."""
        if self._now() != self._state or not self.intact():
            return True
        # What is written through ``.data`` shows in the values alone.
        return not all(map(torch.equal, self._sampled(), self._values))

    def state(self) -> tuple:
        """What running it may change: tensors that are written to, and what its modules hold besides."""
        held = [_held(module) for module in self._modules]
        return [writes(tensor) for tensor in self.tensors], held

    def _now(self) -> tuple:
        tensors = [(writes(tensor), tensor.data_ptr(), tensor.requires_grad) for tensor in self.tensors]
        return tensors, [module.training for module in self._modules]

    def _sampled(self) -> list[Tensor]:
        return [torch.cat(samples) for samples in self._samples]

    def replace_forward(self, called: Callable) -> None:
        """Let something else be called with ``(unit, args, kwargs)`` instead."""
        self.module.forward = lambda *args, **kwargs: called(self, args, kwargs)  # type: ignore[method-assign]

    def restore_forward(self) -> None:
        """As it was."""
        if self._own_forward is not None:
            self.module.forward = self._own_forward
        else:
            self.module.__dict__.pop("forward", None)


def find_units(
    model: nn.Module, refused: Collection[str], kept: Collection[str], known: Mapping[str, Unit]
) -> Iterator[Unit]:
    """The largest modules whose parameters are all frozen.

    Args:
        model: The model.
        refused: Names of modules that are not to be units; their parts may be.
        kept: Names of units that stay, rather than becoming part of larger ones.
        known: The units until now.

    Example:
        >>> from torch import nn
        >>> from smartfrz_lightning.freezing.front_units import find_units
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
        >>> _ = net[0].requires_grad_(False)
        >>> [unit.name for unit in find_units(net, (), (), {})]
        ['0']
    """
    seen: set[int] = set()

    def walk(module: nn.Module, path: str) -> Iterator[Unit]:
        if id(module) in seen:
            return
        seen.add(id(module))
        inside = any(name.startswith(f"{path}.") for name in kept)
        if path and path not in refused and not inside and _usable(module):
            old = known.get(path)
            yield old if old is not None and old.module is module else Unit(path, module)
            return
        for name, child in module.named_children():
            yield from walk(child, f"{path}.{name}" if path else name)

    yield from walk(model, "")


def _held(module: nn.Module) -> list[tuple]:
    """The attributes of a module by identity, and the length of those that have one."""
    return [
        (name, id(value), len(value) if isinstance(value, list | dict | set) else 0)
        for name, value in vars(module).items()
        if name != "forward"
    ]


def _usable(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    if not parameters or any(p.requires_grad or isinstance(p, DTensor) for p in parameters):
        return False
    if type(module).forward is nn.Module.forward:  # a list of modules
        return False
    # What is hooked to a part would not be called.
    return not any(any(module_hooks(part).values()) for part in module.modules() if part is not module)


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
    """The modules inside that drop values or paths at random in training mode, and those that let functions do so.

    Example:
        >>> from torch import nn
        >>> from smartfrz_lightning.freezing.front_units import dropouts
        >>> dropouts(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.ReLU()))
        [Dropout(p=0.1, inplace=False)]
        >>> [type(part).__name__ for part in dropouts(nn.TransformerEncoderLayer(8, 2, dropout=0.1))]
        ['MultiheadAttention', 'Dropout', 'Dropout', 'Dropout']
    """
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
