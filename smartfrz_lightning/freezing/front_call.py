"""FrontCall: one call of a module of the frozen front, in one batch."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from smartfrz_lightning.freezing.fingerprint import Opaque
from smartfrz_lightning.freezing.kept_rows import KeptRows
from smartfrz_lightning.freezing.placeholder import Placeholder
from smartfrz_lightning.freezing.sample_keys import joined
from smartfrz_lightning.private.pytorch import random_states, tree_flatten, tree_unflatten, writes


class Impure(Exception):
    """A module turned out not to be a function of its inputs alone.

    Attributes:
        why: How.
        out: What it gave.
    """

    def __init__(self, why: str, out: Any) -> None:
        super().__init__(why)
        self.why, self.out = why, out


class Owner(Protocol):
    """The cache that a call is made under."""

    def outputs(self, call: "FrontCall") -> list[Tensor]:
        """Its outputs, for another module of the front."""
        ...

    def asked_for(self, call: "FrontCall") -> list[Tensor]:
        """Its outputs, for something outside of the front."""
        ...


class Forward(Protocol):
    """A module of the front."""

    name: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Its own forward pass."""
        ...

    def fingerprint(self) -> bytes:
        """A digest of what it computes by."""
        ...


@dataclass(eq=False)
class Root:
    """A tensor that enters the front from outside, for the length of a batch, with a key of each row."""

    tensor: Tensor | None
    keys: list[bytes]


@dataclass(eq=False)
class Expression:
    """What is known of calls of the same module with inputs of the same origin, whatever the samples.

    Attributes:
        key: A digest of the module and of its inputs' origin.
        checks: So often it turned out to be a function of each sample alone.
        rows: An empty batch of each output.
        structure: Which of the leaves of its output are ``None``, and the output's structure as a pytree.
        end: Whether something outside of the front asks for what it gives.
        worth: Seconds that it takes from the last real tensors on, for a byte of what it gives; ``inf`` if not known.
        kept: What it gave.
        used: Whether there was such a call since this was set to ``False``.
        compare: Whether the next lookup is to be compared with what the module gives.
    """

    key: bytes
    checks: int = 0
    rows: list[Tensor] = field(default_factory=list)
    structure: Any = None
    end: bool = False
    worth: float = math.inf
    kept: KeptRows | None = None
    used: bool = True
    compare: bool = False


@dataclass(eq=False)
class FrontCall:
    """One call.

    Attributes:
        owner: The cache.
        unit: The module.
        expression: What is known of such calls.
        roots: What its output depends on, sample by sample.
        leaves: Its arguments: placeholders, tensors and plain values.
        spec: The structure of its arguments.
        batch: Samples.
        device: Where it is computed.
        results: The outputs, once they are there.
        seconds: That computing them took, from the last real tensors on.
        computed: Whether they were computed, not looked up.
        deferred: Whether it waits to be computed or looked up.
        awaited: Whether another call waits for its outputs.
    """

    owner: Owner
    unit: Forward
    expression: Expression
    roots: list[Root]
    leaves: list[Any]
    spec: Any
    batch: int
    device: torch.device
    state: bytes
    results: list[Tensor] | None = None
    seconds: float = 0.0
    computed: bool = False
    deferred: bool = False
    awaited: bool = False
    _keys: list[bytes] | None = None

    def __post_init__(self) -> None:
        self._autocast = autocast_state(self.device)
        self._gradients = torch.is_grad_enabled()

    @property
    def keys(self) -> list[bytes]:
        """One a sample."""
        if self._keys is None:
            self._keys = [joined(list(row)) for row in zip(*(root.keys for root in self.roots), strict=True)]
        return self._keys

    @property
    def unchanged(self) -> bool:
        """Whether the module is what it was when it was called."""
        try:
            return self.unit.fingerprint() == self.state
        except Opaque:
            return False

    @property
    def before(self) -> list["FrontCall"]:
        """The calls whose outputs it takes directly."""
        return [leaf.call for leaf in self.leaves if isinstance(leaf, Placeholder)]

    def defer(self) -> None:
        """It is computed later, if at all, from what enters as it is now."""
        self.deferred = True
        for call in self.before:
            call.awaited = True
        self.leaves = [
            leaf.clone() if isinstance(leaf, Tensor) and not isinstance(leaf, Placeholder) else leaf
            for leaf in self.leaves
        ]

    def run(self, watched: bool) -> Any:
        """Call the module, and set the results.

        Args:
            watched: See whether it draws random numbers or changes something of its own.

        Returns:
            What it gave.

        Raises:
            Impure: It draws random numbers, changes something, or gives more than a row a sample.
        """
        inputs = [leaf.value() if isinstance(leaf, Placeholder) else leaf for leaf in self.leaves]
        tensors = [leaf for leaf in inputs if isinstance(leaf, Tensor)]
        versions = [writes(tensor) for tensor in tensors]
        drawn = random_states(self.device) if watched else None
        args, kwargs = tree_unflatten(inputs, self.spec)
        with torch.set_grad_enabled(self._gradients), autocast_as(self._autocast):
            out = self.unit.forward(*args, **kwargs)
        if [writes(tensor) for tensor in tensors] != versions:
            for leaf, value in zip(self.leaves, inputs, strict=True):
                if isinstance(leaf, Placeholder):
                    leaf.given = value
            raise Impure("it writes to its inputs", out)
        if drawn is not None and not _same(drawn, random_states(self.device)):
            raise Impure("it draws random numbers", out)
        if watched and not self.unchanged:
            raise Impure("it changes something of its own", out)
        leaves, spec = tree_flatten(out)
        outputs, structure = [leaf for leaf in leaves if leaf is not None], ([leaf is None for leaf in leaves], spec)
        memory = [tensor.untyped_storage().data_ptr() for tensor in tensors]
        for value in outputs:
            if type(value) is not Tensor or value.requires_grad or not value.ndim or len(value) != self.batch:
                raise Impure("it gives more than a tensor with a row for each sample", out)
            memory.append(value.untyped_storage().data_ptr())
        if len(set(memory[len(tensors) :])) != len(outputs) or set(memory[len(tensors) :]) & set(
            memory[: len(tensors)]
        ):
            raise Impure("what it gives shares memory with something else", out)
        rows = [value[:0] for value in outputs]
        known = self.expression
        if known.checks and (structure != known.structure or any(map(_differ, rows, known.rows))):
            raise Impure("what it gives has another shape from batch to batch", out)
        known.rows, known.structure = rows, structure
        self.results, self.computed = outputs, True
        return out

    def placeholders(self) -> Any:
        """What stands for its outputs."""
        rows = self.expression.rows
        outputs = [Placeholder.of(self, slot, (self.batch, *row.shape[1:])) for slot, row in enumerate(rows)]
        missing, spec = self.expression.structure
        rest = iter(outputs)
        return tree_unflatten([None if none else next(rest) for none in missing], spec)


def _differ(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device)


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two of ``random_states`` are the same: of Python, NumPy, PyTorch, and a GPU."""
    if one[0] != other[0] or one[1][2] != other[1][2] or not np.array_equal(one[1][1], other[1][1]):
        return False
    return all(torch.equal(a, b) for a, b in zip(one[2:], other[2:], strict=True) if a is not None)


def autocast_state(device: torch.device) -> tuple:
    """Whether autocast is on, and its type."""
    return device.type, torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)


def autocast_as(state: tuple) -> contextlib.AbstractContextManager:
    """Autocast as it was, whatever it is now."""
    same = (torch.get_autocast_dtype(state[0]), torch.is_autocast_enabled(state[0])) == state[1:]
    return contextlib.nullcontext() if same else torch.autocast(*state)
