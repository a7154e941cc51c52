"""Call: a function call of the frozen front that was noted down, to be looked up or carried out later."""

import contextlib
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smartfrz_lightning.freezing.lazy_tensor import LazyTensor, Look
from smartfrz_lightning.freezing.nests import filled, tensors_of
from smartfrz_lightning.freezing.sample_rows import Leaf
from smartfrz_lightning.freezing.sample_store import SampleStore
from smartfrz_lightning.freezing.side_effects import autocast_as, autocast_of, in_place, takes_sizes
from smartfrz_lightning.private.pytorch import writes

if TYPE_CHECKING:
    from smartfrz_lightning.freezing.front_cache import FrontCache
    from smartfrz_lightning.freezing.front_units import Unit

_CHECKS = 3  # batches in which what is kept is compared with what would be computed
_CHECK_AGAIN = 500  # and one of so many after that
_HOLE = torch.empty(0, device="meta")


@dataclass
class Expression:
    """A function and what it gets, as far as that does not depend on the samples.

    Attributes:
        number: By which others that use its output name it.
        text: All of it, as text.
        pure: Whether its outputs are functions of its inputs.
        alias: Whether an output shares its values with an input.
        structure: The nest in which it hands out its outputs.
        looks: What its outputs look like, by the size of the batch.
        tries: In how many batches it was carried out at once and watched.
        stores: The rows of its outputs that are kept.
        chance: Whether it draws random numbers.
        by_sample: Whether a row of an output is that of a sample, by output and size of the batch, as far as it is
            known.
        batches: Batches in which rows were looked up.
    """

    number: int
    text: str
    pure: bool = True
    alias: bool = False
    structure: Any = None
    looks: dict[int, list[Look]] = field(default_factory=dict)
    tries: int = 0
    stores: dict[int, SampleStore] = field(default_factory=dict)
    chance: bool = False
    by_sample: dict[tuple[int, int], bool] = field(default_factory=dict)
    batches: int = 0


class Known:
    """The source of a lazy tensor that has become a plain one."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def value(self, index: int) -> Tensor:
        """The tensor."""
        return self._tensor

    def call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Carry it out."""
        return func(*LazyTensor.values(args), **LazyTensor.values(kwargs))


class Call:
    """A call that was noted down.

    Args:
        cache: Whose it is.
        expression: What it is.
        func: The function.
        args: Its arguments, with lazy tensors and others.
        kwargs: Its keyword arguments.
        inputs: All tensors in them, in order.
        batch: Samples of the batch.
        unit: The part of the front that is called, if it is one.
    """

    def __init__(
        self,
        cache: "FrontCache",
        expression: Expression,
        func: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        inputs: Sequence[Tensor],
        batch: int,
        unit: "Unit | None" = None,
    ) -> None:
        self._unit = unit
        self._modes = unit.modes() if unit else ()
        self.expression, self.batch = expression, batch
        self._cache, self._func = cache, func
        # A copy, as lists of the caller's may change later; without the tensors, as one that is changed in place would
        # be held by what it comes from, and count as still in use.
        holes = itertools.repeat(_HOLE)
        self._args, self._kwargs = filled(args, holes), filled(kwargs, holes)
        # A lazy tensor may stand for something else later, when it was changed in place.
        self._inputs: list[Leaf | tuple[Any, int]] = [
            (t.source, t.index) if isinstance(t, LazyTensor) else cache.leaf(t, batch) for t in inputs
        ]
        self._in_place = in_place(func, args, kwargs)
        self._autocast = autocast_of(inputs)
        leaves: dict[int, Leaf] = {}
        for entry in self._inputs:
            own = [entry] if isinstance(entry, Leaf) else getattr(entry[0], "leaves", [])
            leaves |= {id(leaf): leaf for leaf in own}
        self.leaves = list(leaves.values())
        self.window = cache.rows.batch
        first = self._inputs[0]
        self.origin = None if isinstance(first, Leaf) else first[0]
        """What its first input comes from."""
        self.outputs: dict[int, Tensor] = {}
        self._given: set[int] = set()
        self._settled: dict[int, int] = {}  # how often an output had been written to when it was settled
        self.raw: Any = None
        """What it returned when it was carried out whole for the first time."""
        self.aliases = False
        """Whether an output shared its values with an input then."""

    def call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A function was called with one of the outputs."""
        return self._cache.call(func, args, kwargs)

    @property
    def familiar(self) -> bool:
        """Whether some of its samples have come before."""
        leaves = [leaf for leaf in self.leaves if leaf.by_sample]
        seen = self._cache.rows.seen
        return bool(leaves) and (
            any(all(leaf.keys[row] in seen for leaf in leaves) for row in range(self.batch))
            or any(key in seen for key in self.keys())
        )

    def defer(self) -> None:
        """It is carried out later, if at all: with the values that its inputs have now."""
        for leaf in self._inputs:
            if isinstance(leaf, Leaf) and leaf.copy is None:
                leaf.copy = leaf.tensor.detach().clone()

    def value(self, index: int) -> Tensor:
        """An output that is asked for from outside: looked up, or computed and kept."""
        with torch.no_grad():
            if index not in self.outputs:
                # What has no row for each sample is made of kept parts.
                keeps = self._keeps(index)
                self.outputs[index] = self._looked_up(index) if keeps else self.part(index, None, kept=True)
            elif index not in self._given and self._keeps(index) and self._untouched(index):
                self._cache.rows.note((self.expression.number, index), 0, self.batch)
                self._keep(index, range(self.batch), self.outputs[index])
            self._given.add(index)
        return self.outputs[index]

    def _untouched(self, index: int) -> bool:
        return self._settled.get(index) == writes(self.outputs[index])

    def part(self, index: int, rows: Sequence[int] | None, kept: bool = False) -> Tensor:
        """An output, or rows of it, for a call that uses it; ``kept`` if what it is made of is to be kept."""
        if index in self.outputs:
            return self._select(self.outputs[index], rows)
        store = self.expression.stores.get(index)
        if store is not None and self._keeps(index) and self.expression.by_sample.get((index, self.batch)):
            numbers = range(self.batch) if rows is None else rows
            keys = self.keys()
            if all(keys[row] in store for row in numbers):
                return self._gather(store, index, [keys[row] for row in numbers])
        memo = self._cache.rows.memo
        key = None if rows is None else (self, tuple(rows))
        outputs = memo.get(key) if key else None
        if outputs is None:
            outputs = self.compute(rows, kept=kept)
        if key:
            memo[key] = outputs
        else:
            self.settle(outputs)
        return outputs[index]

    def settle(self, outputs: Sequence[Tensor]) -> None:
        """These are the outputs; what they were made of is not needed any more."""
        self.outputs |= dict(enumerate(outputs))
        self._settled |= {index: writes(tensor) for index, tensor in enumerate(outputs)}
        self._inputs, self._args, self._kwargs = [], (), {}
        if not self.expression.alias:
            self.origin = None

    def compute(self, rows: Sequence[int] | None, look: bool = False, kept: bool = False) -> list[Tensor]:
        """Carry it out, for some samples or for all; ``look`` keeps :attr:`raw` and :attr:`aliases`."""
        index = None if rows is None else torch.tensor(list(rows))
        values = []
        for place, entry in enumerate(self._inputs):
            if isinstance(entry, Leaf):
                value = entry.tensor if look or entry.copy is None else entry.copy
                if index is not None and entry.by_sample:
                    value = value.index_select(0, index.to(value.device))
            else:
                source, number = entry
                value = source.part(number, rows) if isinstance(source, Call) and not kept else source.value(number)
            values.append(value.clone() if self._in_place and place == 0 and not look else value)
        feed = iter(values)
        args, kwargs = filled(self._args, feed), filled(self._kwargs, feed)
        if rows is not None and takes_sizes(self._func):
            args = _with_size(args, self.batch, len(rows))
        with torch.enable_grad(), self._cache.computing(), autocast_as(self._autocast), self._as_it_was():
            out = self._func(*args, **kwargs)
        if look:
            self.raw, self.aliases = out, _aliases(values, out)
        return tensors_of(out)

    def _as_it_was(self) -> contextlib.AbstractContextManager:
        if self._unit is None:
            return contextlib.nullcontext()
        if not self._unit.same:
            raise RuntimeError(
                f"cache_front: {self._unit.name} was changed between its call and the use of what it gave. "
                "Give cache_front=False, or change it before the call or after the training step"
            )
        return self._unit.in_modes(self._modes)

    def keys(self) -> list[bytes]:
        """One a sample: of all that enters the front and makes this output."""
        return self._cache.rows.keys(self.leaves, self.batch)

    def _keeps(self, index: int) -> bool:
        if not self._cache.on or not any(leaf.by_sample for leaf in self.leaves):
            return False
        looks = self.expression.looks.get(self.batch)
        by_sample = self.expression.by_sample.get((index, self.batch), True)
        return by_sample and looks is not None and looks[index].shape[:1] == (self.batch,)

    def _looked_up(self, index: int) -> Tensor:
        cache, expression, keys = self._cache, self.expression, self.keys()
        if (index, self.batch) not in expression.by_sample:
            return self._first_looked_up(index)
        store = expression.stores.get(index)
        with cache.savings.spending():
            known = [row for row, key in enumerate(keys) if store is not None and key in store]
        missing = sorted(set(range(self.batch)) - set(known))
        made = self._some(index, missing) if known and missing else None
        if store is None or not known or (missing and made is None):
            cache.rows.note((expression.number, index), 0, self.batch)
            value = self._computed(index, None)
            self._keep(index, range(self.batch), value)
            return value
        with cache.savings.spending():
            if made is None:
                value = self._gather(store, index, keys)
            else:
                look = expression.looks[self.batch][index]
                stride = look.stride if 0 not in look.stride else torch.empty(look.shape, device="meta").stride()
                value = torch.empty_strided(look.shape, stride, dtype=look.dtype, device=look.device)
                value[torch.tensor(known)] = self._gather(store, index, [keys[row] for row in known])
                value[torch.tensor(missing)] = made
        cache.rows.note((expression.number, index), len(known), self.batch)
        if made is not None:
            self._keep(index, missing, made)
        expression.batches += 1
        if expression.batches <= _CHECKS or expression.batches % _CHECK_AGAIN == 0:
            some = random.Random(expression.batches).sample(known, -(-len(known) // 2))
            with cache.savings.spending():
                made = self._some(index, some, timed=False)
            if made is None or not cache.alike(value[torch.tensor(some)], made):
                self._drop(index)
                cache.rows.note((expression.number, index), 0, self.batch)
                return self._computed(index, None)
        return value

    def _first_looked_up(self, index: int) -> Tensor:
        """Whether the first dimension is that of the samples, shows when some of them are computed alone."""
        expression = self.expression
        value = self._computed(index, None)
        # In irregular orders, so that what is done to whole batches shows.
        alike = True
        for seed in range(2):
            some = random.Random(f"{seed}/{expression.number}").sample(range(self.batch), -(-self.batch // 2))
            with self._cache.savings.spending():
                made = self._some(index, some, timed=False)
            alike = alike and made is not None and self._cache.alike(value[torch.tensor(some)], made)
        expression.by_sample[index, self.batch] = alike
        if expression.by_sample[index, self.batch]:
            self._cache.rows.note((expression.number, index), 0, self.batch)
            self._keep(index, range(self.batch), value)
        else:
            self._drop(index)
        return value

    def _drop(self, index: int) -> None:
        """An output is no function of the sample alone; what it is made of may be."""
        self.expression.by_sample[index, self.batch] = False
        self._cache.by_batch = True
        if store := self.expression.stores.pop(index, None):
            store.close(keep=False)

    def _some(self, index: int, rows: Sequence[int], timed: bool = True) -> Tensor | None:
        """Some rows of an output, or ``None`` where the call does not work with some of the samples alone."""
        look = self.expression.looks[self.batch][index]
        with contextlib.suppress(RuntimeError, ValueError, IndexError, AssertionError):
            made = self._computed(index, rows) if timed else self.compute(rows)[index]
            if made.shape == (len(rows), *look.shape[1:]):
                return made
        return None

    def _computed(self, index: int, rows: Sequence[int] | None) -> Tensor:
        with self._cache.savings.computing():
            return self.compute(rows)[index]

    def _keep(self, index: int, rows: Sequence[int], values: Tensor) -> None:
        keys = self.keys()
        with self._cache.savings.spending():
            self._cache.keep(self.expression, index, [keys[row] for row in rows], values)

    def _gather(self, store: SampleStore, index: int, keys: Sequence[bytes]) -> Tensor:
        look = self.expression.looks[self.batch][index]
        kept = [store.row(key) for key in keys]
        # Memory that a GPU can read by itself.
        out = torch.empty((len(kept), *kept[0].shape), dtype=kept[0].dtype, pin_memory=look.device.type == "cuda")
        rows = torch.stack(kept, out=out)
        shape, overlaps = (len(keys), *look.shape[1:]), 0 in look.stride
        if overlaps:
            return rows.to(look.device, look.dtype)
        return torch.empty_strided(shape, look.stride, dtype=look.dtype, device=look.device).copy_(rows)

    @staticmethod
    def _select(value: Tensor, rows: Sequence[int] | None) -> Tensor:
        return value if rows is None else value.index_select(0, torch.tensor(list(rows), device=value.device))


def _with_size(tree: Any, batch: int, rows: int) -> Any:
    if isinstance(tree, tuple | list):
        return type(tree)([_with_size(entry, batch, rows) for entry in tree])
    return rows if type(tree) is int and tree == batch else tree


def _aliases(inputs: Sequence[Tensor], out: Any) -> bool:
    def address(tensor: Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    own = {address(tensor) for tensor in inputs if tensor.numel()}
    return any(address(tensor) in own for tensor in tensors_of(out))
