"""FrontCalls: the calls of a frozen front's modules, checked, deferred, computed or looked up."""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smartfrz_lightning.freezing.call_notes import CallNotes
from smartfrz_lightning.freezing.front_call import Expression, FrontCall, Impure, autocast_state
from smartfrz_lightning.freezing.front_units import Unit
from smartfrz_lightning.freezing.kept_rows import Budget, KeptRows
from smartfrz_lightning.freezing.pays import Pays
from smartfrz_lightning.freezing.placeholder import Placeholder, touched
from smartfrz_lightning.freezing.row_check import alike, by_sample, same_values
from smartfrz_lightning.private.pytorch import drawing_from, in_transform, outside_transforms, random_states

_CHECKS = 2  # batches in which a call is checked before it may be deferred
_WORTH = 0.1  # seconds a byte, relative to the best, from which on rows are kept


@dataclass
class Batch:
    """One training batch.

    Attributes:
        samples: Its size.
        hits: Lookups that found what they looked for.
        misses: Those that did not.
        known: Rows that were known.
        new: Rows that were not.
        deferred: Names of modules that were called, and not run at once.
        computed: Those that were run.
        made: Calls whose outputs somebody may ask for.
    """

    samples: int = 0
    hits: int = 0
    misses: int = 0
    known: int = 0
    new: int = 0
    deferred: dict[str, None] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)
    made: list[weakref.ref[FrontCall]] = field(default_factory=list)


class FrontCalls:
    """What is known of the calls of a front, and the rows that they gave.

    Args:
        budget: Bytes that the rows may take.
        pays: Gets what all of this takes.
        folder: Of the rows' files.
        dtype: Keep floating-point values in this type.
        refuse: Told of a module that is not to be a part of the front, with the reason.
        stop: Told why nothing may be looked up any more.

    Attributes:
        open: Whether there is a batch.
    """

    def __init__(
        self,
        budget: Budget,
        pays: Pays,
        folder: Path | None,
        dtype: torch.dtype | None,
        refuse: Callable[[Unit, str], None],
        stop: Callable[[str], None],
    ) -> None:
        self._budget, self._pays, self._folder, self._dtype = budget, pays, folder, dtype
        self._refuse, self._stop = refuse, stop
        self._notes = CallNotes(self, refuse)
        self._expressions = self._notes.expressions
        self._seen: set[bytes] = set()
        self.open = self._busy = False
        self._batch = Batch()

    def front_changed(self) -> None:
        """What is frozen has changed: another call may be the last one of the front."""
        for known in self._expressions.values():
            known.end = False

    def end_batch(self) -> Batch:
        """The batch is over."""
        # What somebody still holds is computed while the front is what it was.
        for held in [call for ref in self._batch.made if (call := ref()) is not None]:
            self.outputs(held)
        self.open = False
        self._notes.end_batch()
        batch, self._batch = self._batch, Batch()
        return batch

    def end_epoch(self) -> None:
        """An epoch is over: files are written, and what was not looked for in it goes."""
        for key, known in list(self._expressions.items()):
            if known.kept is not None:
                known.kept.save()
                if not known.kept.used:  # the front has grown, and all rows have been carried on, or has changed
                    known.kept.drop()
                    known.kept = None
                else:
                    known.kept.used = False
            if not known.used:
                del self._expressions[key]
            known.used, known.compare = False, True

    def clear(self) -> None:
        """Write what is new, and forget everything."""
        for known in self._expressions.values():
            if known.kept is not None:
                known.kept.save()
                known.kept.drop()
        self._expressions.clear()
        self._seen.clear()

    def called(self, unit: Unit, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A module of the front is called; returns what it gives, or placeholders."""
        call, unit.called = None, True
        if self.open and not self._busy and not torch.is_inference_mode_enabled() and not in_transform():
            with self._pays.spending():
                call = self._notes(unit, args, kwargs)
        if call is None:
            return unit.forward(*touched(args), **touched(kwargs))
        unit.calls += 1
        self._batch.samples = call.batch
        known = call.expression
        if known.checks < _CHECKS:
            return self._check(unit, call)
        if not self._defers(call):
            try:
                self._compute(call)
            except Impure as error:
                self._refuse(unit, error.why)
                return error.out
            call.leaves = []
        else:
            self._batch.deferred[unit.name] = None
            call.defer()
        self._batch.made.append(weakref.ref(call))
        return call.placeholders()

    def _defers(self, call: FrontCall) -> bool:
        """Whether what a call gives will hardly have to be computed."""
        known = call.expression
        if not known.end and all(key in self._seen for root in call.roots for key in root.keys):
            return True
        return known.kept is not None and known.kept.find(call.keys) is not None

    def _check(self, unit: Unit, call: FrontCall) -> Any:
        """Carry a call out, and see whether it is a function of each sample alone."""
        inputs = [leaf.value() if isinstance(leaf, Placeholder) else leaf for leaf in call.leaves]
        copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in inputs]
        known = call.expression
        try:
            out = self._compute(call)
            with self._pays.spending(), self._aside():
                if not all(same_values(a, b) for a, b in zip(inputs, copies, strict=True) if isinstance(a, Tensor)):
                    raise Impure("it writes to its inputs", out)
                with drawing_from(random_states(call.device), call.device):
                    alone = known.checks > 0 or by_sample(call, unit.module, copies)
                if not alone:
                    raise Impure("what it gives for a sample depends on which others share the batch", out)
                if self._folder is not None:
                    kept = self._kept(known, call)
                    places = kept.find(call.keys)
                    if places is not None and not self._agree(call, kept.read(places)):
                        raise Impure("it gives something else than what was kept", out)
        except Impure as error:
            self._refuse(unit, error.why)
            call.results = None
            if known.kept is not None:
                known.kept.drop()
            return error.out
        known.checks += 1
        call.leaves = []
        self._batch.made.append(weakref.ref(call))
        return call.placeholders()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Modules that are called inside are run."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    # --- outputs

    def outputs(self, call: FrontCall) -> list[Tensor]:
        """Those of a call, looked up or computed."""
        if call.results is None:
            with torch.inference_mode(False), outside_transforms():
                self._find_or_compute(call)
            call.leaves = []
        assert call.results is not None
        return call.results

    def _find_or_compute(self, call: FrontCall) -> None:
        known = call.expression
        places = known.kept.find(call.keys) if known.kept is not None else None
        if places is None:
            self._compute(call)
            return
        assert known.kept is not None
        call.results = known.kept.read(places)
        self._batch.hits += 1
        self._batch.known += call.batch
        if known.compare and call.unchanged:
            known.compare = False
            self._compare(call)

    def asked_for(self, call: FrontCall) -> list[Tensor]:
        """Those of a call, which from now on somebody else may write to."""
        results = self.outputs(call)
        call.expression.end = True
        if call.computed:
            with self._pays.spending(), torch.inference_mode(False), outside_transforms():
                self._keep(call)
            call.computed = False
        return results

    def _compute(self, call: FrontCall) -> Any:
        if call.deferred and not call.unchanged:
            raise RuntimeError(
                f"cache_front: {call.unit.name} was changed after it was called and before what it gives was used. "
                "Change it elsewhere, or use cache_front=False"
            )
        for before in call.before:
            self.outputs(before)
        self._batch.computed.add(call.unit.name)
        new = call.expression.checks < _CHECKS
        start = self._pays.clock(call.device, exact=new)
        with self._aside():
            out = call.run(watched=new)
        call.seconds = self._pays.clock(call.device, exact=new) - start
        call.seconds += sum(before.seconds for before in call.before)
        return out

    def _kept(self, known: Expression, call: FrontCall) -> KeptRows:
        assert call.results is not None
        if known.kept is None:
            known.kept = KeptRows(call.results, self._budget, self._dtype, self._folder, known.key.hex())
        return known.kept

    def _keep(self, call: FrontCall) -> None:
        known = call.expression
        assert call.results is not None
        known.worth = min(known.worth, call.seconds / sum(out.nbytes for out in call.results))
        measured = [one.worth for one in self._expressions.values() if one.checks >= _CHECKS and one.worth < math.inf]
        best = max(measured, default=known.worth)  # a single measurement may be that of a stall
        if known.worth < _WORTH * best:
            if known.kept is not None:
                known.kept.drop()
            return
        self._batch.misses += 1
        kept = self._kept(known, call)
        new = kept.put(call.keys, call.results)
        self._batch.known += call.batch - new
        self._batch.new += new
        if kept.find(call.keys):
            self._seen.update(key for root in call.roots for key in root.keys)

    def _compare(self, call: FrontCall) -> None:
        """Compute once an epoch what was looked up: what a module reads from elsewhere shows in nothing else."""
        kept, call.results = call.results, None
        self._compute(call)
        assert kept is not None
        if not self._agree(call, kept):
            self._stop(f"{call.unit.name} gives something else than before, and nothing shows why")

    def _agree(self, call: FrontCall, kept: list[Tensor]) -> bool:
        coarse = self._dtype is not None or autocast_state(call.device)[2]
        return all(alike(a, b, coarse) for a, b in zip(kept, call.results or (), strict=True))
