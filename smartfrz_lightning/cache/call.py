"""Call: one call of a module of the frozen front; Kind: what is known of all such calls."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smartfrz_lightning.cache.placeholder import Placeholder
from smartfrz_lightning.cache.rows import Rows, digest
from smartfrz_lightning.cache.units import Unit
from smartfrz_lightning.private.pytorch import is_plain, tree_flatten, tree_unflatten


@dataclass(eq=False)
class Kind:
    """What is known of calls of the same module with inputs of the same origin, whatever the samples."""

    key: bytes  # a digest of the module and of its inputs' origin
    checks: int = 0  # so often it turned out to be a function of each sample alone
    like: list[Tensor] = field(default_factory=list)  # an empty batch of each output
    orders: list[list[int]] = field(default_factory=list)  # dimensions of each output, as they lie in memory
    structure: Any = None  # which leaves of its output are ``None``, and the output's structure as a pytree
    same: int | None = None  # which of its inputs it gives back, as an activation that writes in place does
    rows: Rows | None = None  # what it gave
    used: bool = True  # whether there was such a call since this was set to ``False``
    compare: bool = False  # whether the next lookup is to be compared with what the module gives


@dataclass(eq=False)
class Source:
    """An output of an earlier call."""

    call: "Call"
    slot: int


@dataclass(eq=False)
class Call:
    """One call of a module of the frozen front, in one batch."""

    unit: Unit
    state: bytes  # the module's fingerprint
    kind: Kind
    leaves: list[Any]  # its arguments: sources, tensors and plain values
    spec: Any  # their structure, and the names of those with a name
    roots: list[list[bytes]]  # keys of the rows of each tensor from outside that its output depends on
    batch: int
    autocast: tuple[str, torch.dtype, bool]  # type of the device, type of autocast there, whether it is on
    give: Callable[["Call", int], Tensor]  # hands out an output to what is not a part of the front
    results: list[Tensor] | None = None
    computed: bool = False  # rather than looked up
    awaited: bool = False  # another call waits for its outputs

    def __post_init__(self) -> None:
        self._gradients = torch.is_grad_enabled()

    @property
    def keys(self) -> list[bytes]:
        """One a sample."""
        return self.roots[0] if len(self.roots) == 1 else [digest(*row) for row in zip(*self.roots, strict=True)]

    def defer(self) -> None:
        """It is computed later, if at all, from what enters as it is now."""
        for leaf in self.leaves:
            if isinstance(leaf, Source):
                leaf.call.awaited = True
        own = {id(leaf): leaf.clone() for leaf in self.leaves if isinstance(leaf, Tensor)}
        self.leaves = [own.get(id(leaf), leaf) for leaf in self.leaves]

    def run(self, inputs: list[Any]) -> Any:
        """Call the module as it was called, with these arguments."""
        args, values = tree_unflatten(inputs, self.spec[0])
        with torch.set_grad_enabled(self._gradients), torch.autocast(*self.autocast):
            return self.unit.run(*args, **dict(zip(self.spec[1], values, strict=True)))

    def take(self, out: Any, inputs: list[Any]) -> str:
        """Set the results; why they cannot be kept, if so.

        Args:
            out: What the module gave.
            inputs: What it was given.
        """
        leaves, spec = tree_flatten(out)
        outputs = [leaf for leaf in leaves if leaf is not None]
        if not all(type(value) is Tensor and is_plain(value) and not value.requires_grad for value in outputs):
            return "it gives something else than tensors"
        if any(not value.ndim or len(value) != self.batch for value in outputs):
            return "it gives more than a tensor with a row for each sample"
        sources = [n for n, leaf in enumerate(self.leaves) if isinstance(leaf, Source) and inputs[n] is out]
        memory = {value.untyped_storage().data_ptr() for value in outputs}
        entered = {value.untyped_storage().data_ptr() for value in inputs if isinstance(value, Tensor)}
        if not sources and (len(memory) < len(outputs) or entered & memory):
            return "what it gives shares memory with something else"
        kind, structure = self.kind, ([leaf is None for leaf in leaves], spec, sources)
        like = [value.new_empty((0, *value.shape[1:])) for value in outputs]
        if kind.checks and (structure != kind.structure or list(map(looks, like)) != list(map(looks, kind.like))):
            return "what it gives has another shape from batch to batch"
        kind.like, kind.structure, kind.same = like, structure, sources[0] if sources else None
        kind.orders = [sorted(range(value.ndim), key=lambda dim: -value.stride(dim)) for value in outputs]
        self.results, self.computed = outputs, True
        return ""

    def placeholders(self, given: list[Any]) -> Any:
        """What stands for its outputs.

        Args:
            given: Its arguments as they came.
        """
        if self.kind.same is not None:
            given[self.kind.same].call, given[self.kind.same].slot = self, 0
            return given[self.kind.same]
        missing, spec, _ = self.kind.structure
        rest = iter([Placeholder.of(self, slot, like) for slot, like in enumerate(self.kind.like)])
        return tree_unflatten([None if none else next(rest) for none in missing], spec)

    def looked_up(self, rows: list[Tensor]) -> list[Tensor]:
        """Outputs as the module gave them, of rows that were kept."""
        kept = zip(rows, self.kind.like, self.kind.orders, strict=True)
        return [_laid_out(row.to(like.dtype), order) for row, like, order in kept]


@dataclass
class Batch:
    """One training batch: what was called, known and run in it."""

    samples: int = 0
    known: int = 0  # rows
    new: int = 0  # rows
    missed: bool = False  # something was asked for that had to be computed
    deferred: dict[str, None] = field(default_factory=dict)  # modules that were called, and not run at once
    computed: set[str] = field(default_factory=set)  # modules that were run
    made: list[weakref.ref[Call]] = field(default_factory=list)  # calls whose outputs somebody may ask for


def flatten_arguments(args: tuple, kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """Leaves and structure of arguments; a list or a dict, which a module may write to, is a leaf."""
    both = args, tuple(kwargs.values())
    leaves, spec = tree_flatten(both, is_leaf=lambda node: not isinstance(node, tuple))
    return leaves, (spec, tuple(kwargs))


def looks(tensor: Tensor) -> tuple:
    """Shape, type and device."""
    return tensor.shape, tensor.dtype, tensor.device


def _laid_out(tensor: Tensor, order: list[int]) -> Tensor:
    """The same tensor with its dimensions in this order in memory."""
    return tensor.permute(order).contiguous().permute([order.index(dim) for dim in range(tensor.ndim)])
