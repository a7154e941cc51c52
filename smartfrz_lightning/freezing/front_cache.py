"""FrontCache: the forward pass of a frozen front is not run again for samples that it has seen."""

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smartfrz_lightning.freezing.cache_use import ENDED, CacheUse
from smartfrz_lightning.freezing.front_call import Call, Expression, Known
from smartfrz_lightning.freezing.front_units import Unit, dropouts, find_units
from smartfrz_lightning.freezing.lazy_tensor import LazyTensor, Look
from smartfrz_lightning.freezing.nests import NotPlain, described, filled
from smartfrz_lightning.freezing.sample_keys import digest
from smartfrz_lightning.freezing.sample_rows import Leaf, SampleRows
from smartfrz_lightning.freezing.sample_store import Budget, SampleStore
from smartfrz_lightning.freezing.savings import Savings
from smartfrz_lightning.freezing.side_effects import (
    Decisions,
    autocast_of,
    changes_shape,
    hands_out,
    in_place,
    random_state,
    same_random_state,
    selects,
    takes_sizes,
)
from smartfrz_lightning.private.pytorch import (
    Convolution,
    has_global_hooks,
    is_compiled,
    is_plain,
    rounds_products,
    writes,
)

_NOT_CALLED = "it is not called itself"
_TRIES = 2  # batches in which an expression is carried out at once, before it may be deferred
_EXPRESSIONS = 1000  # the most that are known
_CHANGES = 3  # so often may a part of the front change before it is left alone


class FrontCache:
    """Keep what a frozen front gives for every sample, whatever the model, the data loader and the order.

    Between :meth:`open` and :meth:`close`, modules whose parameters are all frozen, and what is done with their outputs
    alone, are not run but noted down. Where something that trains needs such an output, it is looked up by the content
    of the tensors that entered the front, sample by sample; what is not known is computed for those samples, and kept.
    An expression is computed at once the first time, to see whether it is a function of its inputs alone: what draws
    random numbers or changes a tensor is never kept.

    Args:
        model: The model.
        gigabytes: The most that is kept (10^9 bytes).
        folder: Keep it in files there, for this run and for later ones with the same front; in memory if ``None``.
        dtype: Keep floating-point values in this type, such as ``torch.bfloat16``; in their own by default.
        use: What it did before, if it goes on.

    Attributes:
        use: What it did.
        refused: Modules that are no function of their inputs, or not to be replaced, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        gigabytes: float = 4.0,
        folder: str | Path | None = None,
        dtype: torch.dtype | None = None,
        use: CacheUse | None = None,
    ) -> None:
        self._model = model
        self._budget = Budget(int(gigabytes * 1e9))
        self._folder = Path(folder) if folder is not None else None
        self._dtype = dtype
        self.use = use or CacheUse()
        self.use.stopped = ""
        self._seconds_before = self.use.seconds
        self.savings = Savings()
        self._convolves = False
        self._units: dict[str, Unit] = {}
        self.refused: dict[str, str] = {}
        self._changes: dict[str, int] = {}
        self._expressions: dict[tuple, Expression] = {}
        self._numbers = 0
        self._open = False
        self._computing = 0
        self.rows = SampleRows()
        self._made: list[weakref.ref[LazyTensor]] = []
        self.by_batch = False
        """Whether an output turned out not to be a function of the sample alone."""
        self._chance = False  # random numbers were drawn in the front of this batch
        self._found = False
        self._quiet_parameters: set[int] = set()
        self._quiet: list[tuple[nn.Module, nn.Module]] = []  # what drops out, and the unit that it is a part of
        self._epoch = (0, 0)  # hits and misses when it began
        self._epochs = self._same_front = 0  # ends of epochs: all, and since the front changed

    # --- one batch

    @property
    def on(self) -> bool:
        """Whether it has not been switched off."""
        return not self.use.stopped

    @property
    def units(self) -> list[str]:
        """Names of the modules that are looked up as a whole."""
        return list(self._units)

    def watch(self, quiet: Collection[str] = ()) -> None:
        """What is frozen has changed: look again for what belongs to the front.

        Args:
            quiet: Names of parameters; where all of a module's are among them, its dropout is off while the cache is
                on. Elsewhere dropout ends the front that can be kept.
        """
        self._quiet_parameters = {id(self._model.get_parameter(name)) for name in quiet}
        still = [(module, unit) for module, unit in self._quiet if self._in_front(unit)]
        self._restore_dropout()
        self._quiet = still
        if self._units and not quiet:
            self._units.clear()
            self._forget()
        self._found = False
        self._same_front = 0
        self.savings.front_grew()

    def open(self) -> None:
        """A training batch begins."""
        for module, _ in self._quiet:  # also when it is off: what the layers behind see is to stay the same
            module.training = False
        if self._open or not self.on or has_global_hooks():
            return
        with self.savings.spending():
            self._look_around()
        self._open = True
        self.rows.open()
        for unit in self._units.values():
            unit.replace_forward(self._called)

    def _look_around(self) -> None:
        """Whether the front is what it was."""
        if not self._found:
            self._find()
        for unit in list(self._units.values()):
            if "forward" in vars(unit.module):  # somebody's replacement
                self._found = False
                del self._units[unit.name]
            elif unit.changed():
                self._note_change(unit)
            else:
                unit.restless = 0
        if not self._found:  # a part trains again
            self._find()

    def close(self) -> float:
        """The batch is over, or was interrupted; returns the share of its samples that the front was not run for."""
        if not self._open:
            return 0.0
        share = 0.0
        for unit in self._units.values():
            unit.restore_forward()
        # What somebody still holds is computed while the front is what it was.
        for held in self._made:
            lazy = held()
            if lazy is not None and isinstance(lazy.source, Call) and self.on:
                lazy.source, lazy.index = Known(lazy.source.part(lazy.index, None)), 0
        self._open = self._chance = False
        self._made.clear()
        if looked_up := self.rows.close():
            known, samples = looked_up
            share = known / samples
            self.use.hits += known
            self.use.misses += samples - known
            self.savings.batch_done(known, samples)
        else:
            self.savings.batch_unknown()
        for unit in self._units.values():
            if unit.calls and not unit.same:
                self.refused.setdefault(unit.name, "a training step changes it")
                self._found = False
        if len(self._expressions) > _EXPRESSIONS:
            self.stop("what is done with the front's outputs is another thing in every step")
        # A container that is never called itself (a list of blocks): its parts may be.
        elif never := [name for name, unit in self._units.items() if not unit.calls]:
            for name in never:
                self.refused.setdefault(name, _NOT_CALLED)
            self._found = False
        return share

    def stop(self, reason: str = "", keep: bool = True) -> None:
        """Switch off, and give memory back.

        Args:
            reason: Why; dropout in the front stays off then. Without, training has ended.
            keep: Whether files stay for later runs.
        """
        self.close()
        self._find_seconds()
        for expression in self._expressions.values():
            for store in expression.stores.values():
                store.close(keep)
            expression.stores.clear()
        self._expressions.clear()
        self._units.clear()
        if not reason:
            self._restore_dropout()
        self.use.stopped = self.use.stopped or reason or ENDED

    def flush(self) -> None:
        """Leave files in a state in which they are found again, whatever happens afterwards."""
        for expression in self._expressions.values():
            for store in expression.stores.values():
                store.flush()

    def end_epoch(self) -> None:
        """An epoch is over: a cache that costs more than it saves is switched off.

        It is judged by the second whole epoch after the front last changed, or by all of them from the fourth on.
        """
        before, self._epoch = self._epoch, (self.use.hits, self.use.misses)
        saved = self.savings.end_epoch()
        self._find_seconds()
        for expression in self._expressions.values():
            for index, store in list(expression.stores.items()):
                if not store.used:  # the front has grown, and all rows have been carried on
                    store.close()
                    del expression.stores[index]
                store.used = False
        self._epochs += 1
        self._same_front += 1
        hits, misses = self.use.hits - before[0], self.use.misses - before[1]
        if not self.savings.known:
            return
        if self._same_front > 2 and hits + misses:
            self._judge(hits / (hits + misses), saved)
        elif self._epochs > 3 and self.use.hits + self.use.misses:
            self._judge(self.use.rate, self.savings.seconds)

    def _judge(self, rate: float, saved: float) -> None:
        if saved < 0 and rate > 0.5:
            self.stop("what it stands for is computed faster than it is looked up")
        elif saved < 0 and self.by_batch:
            self.stop("what it gives for a sample depends on which others share the batch")
        elif saved < 0:
            self.stop(
                f"it knew {rate:.0%} of the samples and did not pay: random augmentation, or samples that do not come "
                "again"
            )

    # --- parts of the front

    def _find(self) -> None:
        if any(map(is_compiled, self._model.modules())):
            self.stop("the model is compiled")
            return
        self.savings.on_gpu = any(parameter.is_cuda for parameter in self._model.parameters())
        self._convolves = any(isinstance(module, Convolution) for module in self._model.modules())
        kept = {name for name, unit in self._units.items() if unit.frozen and unit.calls}
        if not all(unit.frozen for unit in self._units.values()):
            self._forget()
        self._units = {unit.name: unit for unit in find_units(self._model, self.refused, kept, self._units)}
        self._restore_dropout()
        for unit in self._units.values():
            if self._in_front(unit.module):
                self._quiet += [(part, unit.module) for part in dropouts(unit.module) if part.training]
        for module, _ in self._quiet:
            module.training = False
        self._found = True

    def _in_front(self, module: nn.Module) -> bool:
        return all(id(parameter) in self._quiet_parameters for parameter in module.parameters())

    def _restore_dropout(self) -> None:
        for module, _ in self._quiet:
            module.training = self._model.training
        self._quiet.clear()

    def _note_change(self, unit: Unit) -> None:
        before, unit.restless = unit.digest, unit.restless + 1
        unit.look()
        self._found = False  # it may be none any more
        if not unit.frozen:
            return
        if unit.digest != before:
            self._changes[unit.name] = self._changes.get(unit.name, 0) + 1
            self._forget()
        if max(self._changes.get(unit.name, 0), unit.restless) > _CHANGES:
            self.refused[unit.name] = "something changes it"
            del self._units[unit.name]

    def _forget(self) -> None:
        self.savings.front_shrank()
        for expression in self._expressions.values():
            for store in expression.stores.values():
                store.close()
        self._expressions.clear()

    def _called(self, unit: Unit, args: tuple, kwargs: dict[str, Any]) -> Any:
        unit.calls += 1
        if self._chance:
            self.refused.setdefault(unit.name, "what comes before it draws random numbers")
            self._found = False
            return unit.forward(*LazyTensor.values(args), **LazyTensor.values(kwargs))
        if not self._open or self._computing or not torch.is_grad_enabled() or not unit.same:
            return unit.forward(*LazyTensor.values(args), **LazyTensor.values(kwargs))
        return self.call(unit.forward, args, kwargs, unit)

    # --- functions of lazy tensors

    def call(self, func: Callable, args: tuple, kwargs: dict[str, Any], unit: Unit | None = None) -> Any:
        """Note a call down, or carry it out."""
        if changes_shape(func):
            raise RuntimeError(
                f"cache_front: {func.__name__} changes the shape of what the frozen front gives in place. Use the "
                "function of that name without the underscore, or cache_front=False"
            )
        inputs: list[Tensor] = []
        try:
            if not self._open or self._computing or self._chance or "out" in kwargs or hands_out(func):
                raise NotPlain
            name = self._name(func, unit)
            tensors = [t for t in args if isinstance(t, Tensor)] if takes_sizes(func) else []
            size = self.rows.samples_in(tensors) if tensors else 0
            arguments = described(args, inputs, size), described(kwargs, inputs)
            if not inputs or not all(map(self._noted, inputs)) or selects(func, inputs):
                raise NotPlain
            batch = self.rows.samples_in(inputs)
            if not batch:
                raise NotPlain
            key = (name, arguments, autocast_of(inputs), *(self._look(tensor, batch) for tensor in inputs))
            expression = self._expressions.get(key)
            if expression is None:
                expression = self._expressions[key] = Expression(self._numbers, repr(key))
                self._numbers += 1
            writes_first, first = in_place(func, args, kwargs), inputs[0]
            if writes_first and not (isinstance(first, LazyTensor) and first is _first(args) and not first.viewed):
                expression.pure = False
                self._no_views(first)
            if not expression.pure:
                self._chance |= expression.chance
                raise NotPlain
            note = Call(self, expression, func, args, kwargs, inputs, batch, unit)
        except NotPlain:
            return self._carry_out(func, args, kwargs)
        looks = expression.looks.get(batch)
        if looks is None or expression.tries < _TRIES or not note.familiar:
            with self.savings.spending():
                pure = self._try(note, inputs, unit)
            if not pure:
                if isinstance(first, LazyTensor) and writes_first:
                    first.source, first.index = Known(first.value() if note.raw is None else note.raw), 0
                return note.raw
            looks = expression.looks[batch]
        else:
            note.defer()
        if writes_first:
            first.source, first.index = note, 0  # type: ignore[attr-defined]
            return first
        made = [LazyTensor.of(note, index, look) for index, look in enumerate(looks)]
        for tensor in [*inputs, *made] if expression.alias else ():
            if isinstance(tensor, LazyTensor):
                tensor.viewed = True
        self._made += map(weakref.ref, made)
        return filled(expression.structure, iter(made))

    def _noted(self, tensor: Tensor) -> bool:
        """Whether a tensor is one whose values can be told: lazy and of this batch, or plain and without a gradient."""
        if isinstance(tensor, LazyTensor):
            return isinstance(tensor.source, Call) and tensor.source.window == self.rows.batch
        return is_plain(tensor) and not tensor.requires_grad

    def _no_views(self, first: Tensor) -> None:
        """Somebody writes into a view of what the front gives: views of it are carried out from now on."""
        source = getattr(first, "source", None)
        while isinstance(source, Call) and source.expression.alias:
            source.expression.pure = False
            source = source.origin

    def _name(self, func: Callable, unit: Unit | None) -> str:
        if unit is not None:
            return f"{unit.name} {unit.digest} {''.join('01'[mode] for mode in unit.modes())}"
        module = getattr(func, "__module__", None) or getattr(getattr(func, "__objclass__", None), "__name__", "")
        name = getattr(func, "__qualname__", None) or getattr(func, "__name__", None)
        if getattr(F, getattr(func, "__name__", ""), None) is func:  # some have no other name
            name = func.__name__
        if name is None or "<" in name or name in ("__get__", "__set__"):
            raise NotPlain
        return f"{module}.{name}"

    def _carry_out(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        out = func(*LazyTensor.values(args), **LazyTensor.values(kwargs))
        first = _first(args)
        # What others hold of it sees the change.
        if isinstance(first, LazyTensor) and (in_place(func, args, kwargs) or hands_out(func)):
            first.source, first.index = Known(out if isinstance(out, Tensor) else first.value()), 0
        return out

    def _look(self, tensor: Tensor, batch: int) -> tuple:
        """What of an input belongs to the expression: for a lazy tensor what it is, for others what they look like."""
        if isinstance(tensor, LazyTensor):
            return ("lazy", tensor.source.expression.number, tensor.index)  # type: ignore[attr-defined]
        by_sample = self.rows.by_sample(tensor, batch)
        return (str(tensor.dtype), str(tensor.device), by_sample, tuple(tensor.shape[by_sample:]))

    def leaf(self, tensor: Tensor, batch: int) -> Leaf:
        """A tensor that enters the front, with the keys of its samples."""
        with self.savings.spending():
            return self.rows.leaf(tensor, batch)

    def _try(self, note: Call, inputs: Sequence[Tensor], unit: Unit | None) -> bool:
        """Carry out an expression of which it is not known what comes out, and see whether it is pure."""
        expression, device = note.expression, inputs[0].device
        written = [tensor for tensor in inputs if not isinstance(tensor, LazyTensor)]
        versions = [writes(tensor) for tensor in written]
        before = random_state(device)
        watching = Decisions() if expression.tries < _TRIES else contextlib.nullcontext()
        with watching as decisions, self.savings.computing():
            outputs = note.compute(None, look=True)
        drew = not same_random_state(before, random_state(device))
        changed = [writes(tensor) for tensor in written] != versions or (unit is not None and not unit.same)
        changed = changed or bool(decisions and decisions.made)
        plain = bool(outputs) and all(type(t) is Tensor and not t.requires_grad for t in outputs)
        if drew or changed or not plain:
            expression.pure, expression.chance = False, drew
            self._chance |= drew
            if unit is not None:
                why = (
                    "it changes something of its own, or goes by values" if plain else "its output is more than tensors"
                )
                self.refused.setdefault(unit.name, "it draws random numbers" if drew else why)
                self._found = False
            return False
        looks = list(map(Look.of, outputs))
        if expression.looks.get(note.batch, looks) != looks:  # it depends on values
            expression.pure = False
            return False
        if not expression.looks:
            expression.structure = filled(note.raw, iter([tensor.to("meta") for tensor in outputs]))
        expression.alias |= note.aliases
        expression.looks[note.batch] = looks
        expression.tries += 1
        note.settle(outputs)
        note.raw = None
        return True

    # --- rows

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """What is called inside is carried out."""
        self._computing += 1
        try:
            yield
        finally:
            self._computing -= 1

    def keep(self, expression: Expression, index: int, keys: Sequence[bytes], values: Tensor) -> None:
        """Keep rows of an output."""
        store = expression.stores.get(index)
        if store is None:
            store = expression.stores[index] = self._new_store(expression, index, values)
        store.put(keys, values)
        if self._dtype is not None and len(values):
            error = (values.to(store.dtype).to(values.dtype) - values).abs().max() / values.abs().max().clamp(min=1e-30)
            self.use.rounding = max(self.use.rounding, float(error))
        if store.problem:
            self.stop(f"no more can be written to {self._folder}: {store.problem}")

    def _new_store(self, expression: Expression, index: int, values: Tensor) -> SampleStore:
        dtype = self._dtype if self._dtype is not None and values.dtype.is_floating_point else values.dtype
        text = f"{self._text(expression)} {index} {dtype}" if self._folder else ""
        name = digest(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)).hex() if text else ""
        store = SampleStore(values.shape[1:], dtype, self._budget, self._folder, name)
        self.rows.seen.update(store.keys())  # of an earlier run
        return store

    def alike(self, kept: Tensor, made: Tensor) -> bool:
        """Whether two tensors are the same except for rounding."""
        if not made.is_floating_point():
            return torch.equal(kept, made)
        if not made.numel():
            return kept.shape == made.shape
        coarse = torch.is_autocast_enabled(made.device.type) or made.dtype.itemsize < 4 or self._dtype is not None
        scale = made.abs().max().clamp(min=1e-30)
        fine = 1e-9 if made.dtype == torch.float64 else 1e-2 if rounds_products(made, self._convolves) else 1e-4
        near = 3e-2 if coarse else fine
        return bool((kept - made).abs().max() <= near * scale) or torch.equal(kept, made)

    def _text(self, expression: Expression) -> str:
        """An expression with those that it is made of, the same in every run."""
        by_number = {known.number: known for known in self._expressions.values()}

        def whole(text: str) -> str:
            parts = text.split("('lazy', ")
            out = parts[0]
            for part in parts[1:]:
                number, rest = part.split(",", 1)
                out += f"({whole(by_number[int(number)].text)},{rest}"
            return out

        return f"{torch.__version__} {whole(expression.text)}"

    def _find_seconds(self) -> None:
        self.use.seconds = self._seconds_before + self.savings.seconds
        said = {name: why for name, why in self.refused.items() if why != _NOT_CALLED}
        self.use.ends = next((f"{name}: {why}" for name, why in said.items()), "")
        self.use.gigabytes = max(self.use.gigabytes, (self._budget.size - self._budget.free) / 1e9)


def _first(args: tuple) -> Any:
    return args[0] if args else None
