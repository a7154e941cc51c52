"""Calls: what the modules of a frozen front give, looked up or computed."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.cache.call import Batch, Call, Kind, Source, flatten_arguments, looks
from smartfrz_lightning.cache.check import alike, by_sample, same_states, same_values
from smartfrz_lightning.cache.fingerprint import PLAIN, Opaque
from smartfrz_lightning.cache.placeholder import Placeholder, touched
from smartfrz_lightning.cache.rows import Budget, Rows, digest, row_digests
from smartfrz_lightning.cache.units import Unit
from smartfrz_lightning.private.pytorch import (
    drawing_from,
    in_transform,
    is_plain,
    outside_transforms,
    random_states,
    writes,
)

_CHECKS = 2  # batches in which a call is checked before it may be looked up


class Calls:
    """Notes the calls of a front down, and hands out what they give.

    Args:
        budget: Bytes that rows may take.
        folder: Of the rows' files.
        dtype: Keep floating-point values in this type.
        refuse: Told of a module that is not to be a part of the front, with the reason.
        stop: Told why nothing may be looked up any more.
    """

    def __init__(
        self,
        budget: Budget,
        folder: Path | None,
        dtype: torch.dtype | None,
        refuse: Callable[[Unit, str], None],
        stop: Callable[[str], None],
    ) -> None:
        self._budget, self._folder, self._dtype = budget, folder, dtype
        self._refuse, self._stop = refuse, stop
        self._kinds: dict[bytes, Kind] = {}
        self._seen: set[bytes] = set()  # keys of rows that entered, of which something was kept
        self._batch, self._looks_up = Batch(), False

    def begin_batch(self) -> None:
        """A batch begins."""
        self._looks_up = True

    def end_batch(self) -> Batch:
        """A batch is over."""
        # What somebody still holds is computed while the front is what it was.
        batch = self._batch
        try:
            for held in [call for ref in batch.made if (call := ref()) is not None]:
                self._results(held)
        finally:
            self._batch, self._looks_up = Batch(), False
        return batch

    def end_epoch(self) -> None:
        """Files are written, and what was not used goes."""
        for key, kind in list(self._kinds.items()):
            if kind.rows is not None:
                kind.rows.save()
                if not kind.rows.used:  # the front has grown, and all rows have been carried on, or has changed
                    kind.rows.drop()
                kind.rows.used = False
            if not kind.used:
                del self._kinds[key]
            kind.used, kind.compare = False, True

    def clear(self) -> None:
        """Write what is new, and forget everything."""
        for rows in [kind.rows for kind in self._kinds.values() if kind.rows is not None]:
            rows.save()
            rows.drop()
        self._kinds.clear()
        self._seen.clear()

    def called(self, unit: Unit, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A module of the front is called; returns what it gives, or placeholders."""
        unit.calls += 1
        on_the_front = unit.begins or any(isinstance(value, Placeholder) for value in (*args, *kwargs.values()))
        usable = self._looks_up and on_the_front and not torch.is_inference_mode_enabled() and not in_transform()
        given, spec = flatten_arguments(args, kwargs) if usable else ([], None)
        call = self._noted(unit, given, spec) if usable else None
        if call is None:
            return self.outside(unit, args, kwargs)
        self._batch.samples = call.batch
        if call.kind.checks >= _CHECKS and all(key in self._seen for root in call.roots for key in root):
            self._batch.deferred[unit.name] = None
            call.defer()
        else:
            out, why = self._compute(call, given)
            if why:
                self._refuse(unit, why)
                return out
        self._batch.made.append(weakref.ref(call))
        return call.placeholders(given)

    def outside(self, unit: Unit, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A module is run as ever, on real tensors."""
        return unit.forward(*map(touched, args), **{name: touched(value) for name, value in kwargs.items()})

    def _noted(self, unit: Unit, given: list[Any], spec: Any) -> Call | None:
        """A call of the front; ``None`` if it is not to be one.

        Its key is made of the module's fingerprint and of its arguments in order: for a placeholder the key of the call
        that gives it, for a tensor from outside its type and shape, for any other value the value. The rows of tensors
        from outside have keys of their own, made of their content.
        """
        leaves = [leaf.given if isinstance(leaf, Placeholder) and leaf.given is not None else leaf for leaf in given]
        leaves = [Source(leaf.call, leaf.slot) if isinstance(leaf, Placeholder) else leaf for leaf in leaves]
        before = [leaf.call for leaf in leaves if isinstance(leaf, Source)]
        real = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if any(leaf.requires_grad or type(leaf) not in (Tensor, nn.Parameter) or not is_plain(leaf) for leaf in real):
            return None
        sizes = {call.batch for call in before} or {len(t) for t in real if t.ndim and type(t) is Tensor}
        batch = sizes.pop() if len(sizes) == 1 else 0
        if batch < 2 or not (before or unit.begins):
            return None
        try:
            state, refusal = unit.fingerprint(), "it is given more than tensors and plain values"
        except Opaque as error:
            state, refusal = b"", str(error)
        if not state or not all(isinstance(leaf, (Tensor, Source, *PLAIN)) for leaf in leaves):
            self._refuse(unit, refusal)
            return None
        roots: list[list[bytes]] = []
        about: list[Any] = [str(spec)]
        for leaf in leaves:
            if isinstance(leaf, Source):
                about.append((leaf.call.kind.key, leaf.slot, [_place(root, roots) for root in leaf.call.roots]))
            elif isinstance(leaf, Tensor) and type(leaf) is Tensor and leaf.ndim and len(leaf) == batch:
                about.append((leaf.dtype, leaf.device.type, leaf.shape[1:], _place(row_digests(leaf), roots)))
            elif isinstance(leaf, Tensor):
                about.append((leaf.dtype, leaf.device.type, leaf.shape, digest(leaf)))
            else:
                about.append((type(leaf).__name__, leaf))
        kind = before[0].autocast[0] if before else real[0].device.type
        autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        key = digest(state, repr((about, autocast)).encode())
        known = self._kinds.setdefault(key, Kind(key))
        known.used = True
        return Call(unit, state, known, leaves, spec, roots, batch, autocast, self._give)

    # --- outputs

    def _give(self, call: Call, slot: int) -> Tensor:
        """An output, to something outside of the front, which from now on may write to it."""
        results = self._results(call)
        with torch.inference_mode(False), outside_transforms():
            if call.computed:
                self._keep(call, results)
            call.computed = False
            return results[slot].clone() if call.awaited else results[slot]

    def _results(self, call: Call) -> list[Tensor]:
        """The outputs of a call, looked up or computed."""
        if call.results is None:
            with torch.inference_mode(False), outside_transforms():
                rows, kind = call.kind.rows, call.kind
                places = rows.find(call.keys) if rows is not None else None
                if rows is not None and places is not None:
                    call.results = call.looked_up(rows.read(places))
                    self._batch.known += call.batch
                    if kind.compare:
                        self._compare(call, call.results)
                else:
                    self._compute_late(call)
            call.leaves = []
        assert call.results is not None
        return call.results

    def _compute_late(self, call: Call) -> None:
        why = "" if self._unchanged(call) else "was changed after it was called and before what it gives was used"
        why = why or self._compute(call, [])[1]
        if why:
            raise RuntimeError(f"cache_front: {call.unit.name} {why}. Change it elsewhere, or use cache_front=False")

    def _compare(self, call: Call, kept: list[Tensor]) -> None:
        """What a module reads from elsewhere, and files that older code wrote, show in nothing else."""
        if not self._unchanged(call):
            return
        call.kind.compare = False
        _, why = self._compute(call, [])
        call.results, call.computed = call.results or kept, False
        coarse = self._dtype is not None or call.autocast[2]
        for one, other in zip(kept, call.results, strict=True):
            fine = 1e-2 if other.is_cuda else 1e-9 if other.dtype == torch.float64 else 1e-4
            if why or not alike(one, other, 5e-2 if coarse else fine):
                told = "gives something else than what was kept: it reads from elsewhere, or other code wrote the files"
                self._stop(f"{call.unit.name} {told}")

    def _unchanged(self, call: Call) -> bool:
        try:
            return call.unit.fingerprint() == call.state
        except Opaque:
            return False

    def _compute(self, call: Call, given: list[Any]) -> tuple[Any, str]:
        """Run a module, and set the results of its call; in the first batches, see what else it does.

        Args:
            call: The call.
            given: Its arguments as they came: placeholders of what it writes to become what it made of them.

        Returns:
            What it gave, and why that cannot be kept.
        """
        kind, new = call.kind, call.kind.checks < _CHECKS
        sources = [number for number, leaf in enumerate(call.leaves) if isinstance(leaf, Source)]
        values = [self._results(leaf.call)[leaf.slot] if isinstance(leaf, Source) else leaf for leaf in call.leaves]
        copies = {id(v): v.clone() for v in values if isinstance(v, Tensor) and (new or kind.same is not None)}
        copied = [copies.get(id(value), value) for value in values]
        inputs = [copied[n] if n in sources else value for n, value in enumerate(values)]
        before = [value if n in sources else copied[n] for n, value in enumerate(values)]
        device = next(value.device for value in inputs if isinstance(value, Tensor))
        drawn = random_states(device) if new else None
        versions = [writes(value) if isinstance(value, Tensor) else 0 for value in inputs]
        self._batch.computed.add(call.unit.name)
        looked_up, self._looks_up = self._looks_up, False  # modules that are called inside are run
        written, out, why = set(sources), None, "it fails"
        try:
            out = call.run(inputs)
            why = call.take(out, inputs)
            pairs = [(n, a, b) for n, (a, b) in enumerate(zip(inputs, before, strict=True)) if isinstance(a, Tensor)]
            written = {n for n, a, b in pairs if writes(a) != versions[n] or (new and not same_values(a, b))}
            if not why and written - {kind.same}:
                why = "it writes to its inputs"
            if drawn is not None and not why:
                why = self._side_effects(call, before, drawn, device)
        finally:
            self._looks_up = looked_up
            for number in (sources if new else written) if why and given else ():
                if isinstance(given[number], Placeholder):  # from now on what the module was given, and may have kept
                    given[number].given = inputs[number]
        if why:
            call.results = None
        kind.checks += not why
        call.leaves = []
        return out, why

    def _side_effects(self, call: Call, before: list[Any], drawn: tuple[Any, ...], device: torch.device) -> str:
        if not same_states(drawn, random_states(device)):
            return "it draws random numbers"
        if not self._unchanged(call):
            return "it changes something of its own"
        if call.kind.checks:
            return ""
        with drawing_from(drawn, device):
            alone = by_sample(call.run, before, call.results or [])
            if not self._unchanged(call):  # the size of a batch, say
                call.run([_clone(value) for value in before])
                return "it changes something of its own"
        return "" if alone else "what it gives for a sample depends on which others share the batch"

    def _keep(self, call: Call, results: list[Tensor]) -> None:
        kind = call.kind
        if kind.rows is None:
            name = digest(kind.key, repr((*map(looks, kind.like), self._dtype)).encode()).hex()
            kind.rows = Rows(self._budget, self._folder, name, results[0].device)
            kind.compare |= bool(kind.rows.place)
            if len(call.roots) == 1:
                self._seen.update(kind.rows.place)
        low = [t.to(self._dtype) if self._dtype and t.is_floating_point() else t for t in results]
        new = sum(key not in kind.rows.place for key in call.keys)
        if not any(bool((a.isinf() & b.isfinite()).any()) for a, b in zip(low, results, strict=True) if a is not b):
            kind.rows.put(call.keys, low)
        self._batch.missed = True
        self._batch.known += call.batch - new
        self._batch.new += new
        if kind.rows.find(call.keys):
            self._seen.update(key for root in call.roots for key in root)


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _place(root: list[bytes], roots: list[list[bytes]]) -> int:
    """The place of a tensor's keys among others, which they join."""
    if root not in roots:
        roots.append(root)
    return roots.index(root)
