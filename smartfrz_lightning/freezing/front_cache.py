"""FrontCache: the forward pass of a frozen front is not run again for samples that it has seen."""

import math
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from smartfrz_lightning.freezing.cache_use import ENDED, CacheUse
from smartfrz_lightning.freezing.dropouts import dropouts
from smartfrz_lightning.freezing.fingerprint import Opaque, is_plain_value
from smartfrz_lightning.freezing.front_call import Expression, FrontCall, Impure, Root, autocast_state
from smartfrz_lightning.freezing.front_units import Unit, find_units
from smartfrz_lightning.freezing.kept_rows import Budget, KeptRows
from smartfrz_lightning.freezing.pays import Pays
from smartfrz_lightning.freezing.placeholder import Placeholder, touched
from smartfrz_lightning.freezing.row_check import alike, by_sample
from smartfrz_lightning.freezing.sample_keys import digest, row_digests
from smartfrz_lightning.private.pytorch import has_global_hooks, is_compiled, is_plain, tree_flatten

_NOT_CALLED = "it is not called itself"
_CHECKS = 2  # batches in which a call is checked before it may be deferred
_WORTH = 0.1  # seconds a byte, relative to the best, from which on rows are kept


class FrontCache:
    """Keep what a frozen front gives for every sample, whatever the model, the data loader and the order.

    Between :meth:`open` and :meth:`close`, a module whose parameters are all frozen gives placeholders for samples that
    were seen before. Other such modules take them as they are; anything else that touches one gets the real tensor,
    which is looked up by the content of what entered the front, or computed, for the whole batch. A call is kept only
    if it proved to be a function of each sample alone.

    Args:
        model: The model.
        gigabytes: The most that is kept (10^9 bytes).
        folder: Write it to files there, and read those of earlier runs.
        dtype: Keep floating-point values in this type, such as ``torch.bfloat16``; in their own by default.
        use: What it did before, if it goes on.
        pays: Says when to stop because it saves no time.

    Attributes:
        use: What it did.
        refused: Modules that are not kept, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        gigabytes: float = 4.0,
        folder: str | Path | None = None,
        dtype: torch.dtype | None = None,
        use: CacheUse | None = None,
        pays: Pays | None = None,
    ) -> None:
        self._model = model
        self._budget = Budget(int(gigabytes * 1e9))
        self._folder = Path(folder) if folder is not None else None
        self._dtype = dtype
        self.use = use or CacheUse()
        self.use.stopped = ""
        self.refused: dict[str, str] = {}
        self.pays = pays or Pays()
        self._units: dict[str, Unit] = {}
        self._expressions: dict[bytes, Expression] = {}
        self._seen: set[bytes] = set()
        self._quiet: list[nn.Module] = []
        self._quiet_parameters: set[int] = set()
        self._found = self._open = self._busy = False
        self._verify = False
        self._clear_batch()

    def _clear_batch(self) -> None:
        self._roots: dict[int, Root] = {}
        self._made: list[weakref.ref[FrontCall]] = []
        self._deferred: dict[str, None] = {}
        self._computed: set[str] = set()
        self._samples = self._hits = self._misses = self._known = self._new = 0

    # --- one batch

    @property
    def on(self) -> bool:
        """Whether it has not been switched off."""
        return not self.use.stopped

    def watch(self, quiet: Collection[str] = ()) -> None:
        """What is frozen has changed: look again for what belongs to the front.

        Args:
            quiet: Names of parameters; where all of a module's are among them, its dropout is off while the cache is
                on. Elsewhere dropout ends the front that can be kept.
        """
        self._quiet_parameters = {id(self._model.get_parameter(name)) for name in quiet}
        self._restore_dropout()
        self._found = False
        for known in self._expressions.values():
            known.end = False
        self.pays.front_changed()

    def open(self) -> None:
        """A training batch begins."""
        for module in self._quiet:  # also when it is off: what the layers behind see is to stay the same
            module.training = False
        if self._open or not self.on or has_global_hooks():
            return
        if not self._found:
            self._find()
        self._open = self.on
        for unit in self._units.values():
            if "forward" not in vars(unit.module):
                unit.replace_forward(self._called)
        self.pays.batch_begins()

    def close(self) -> list[str]:
        """The batch is over, or was interrupted.

        Returns:
            Names of the modules whose forward pass was not run for it.
        """
        if not self._open:
            return []
        # What somebody still holds is computed while the front is what it was.
        for held in [call for ref in self._made if (call := ref()) is not None]:
            self.outputs(held)
        self._open = False
        for unit in self._units.values():
            unit.restore_forward()
            if not unit.calls:  # a container whose parts are called
                self._refuse(unit, _NOT_CALLED)
        self.use.hits += self._samples * bool(self._hits and not self._misses)
        self.use.misses += self._samples * bool(self._misses)
        self.pays.batch_ends(self._hits, self._misses, self._known / max(1, self._known + self._new))
        skipped = [name for name in self._deferred if name not in self._computed]
        self._clear_batch()
        return skipped

    def end_epoch(self) -> None:
        """An epoch is over: a cache that costs more than it saves is switched off."""
        self._note_use()
        for unit in list(self._units.values()):
            try:
                unit.fingerprint.read_again()
            except Opaque as error:
                self._refuse(unit, str(error))
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
            known.used = False
        self._verify = True
        if self.on and (reason := self.pays.reason_to_stop(self._budget.full)):
            self.stop(reason)

    def stop(self, reason: str = "") -> None:
        """Switch off, and give memory back.

        Args:
            reason: Why. Without, training has ended.
        """
        self.close()
        self._note_use()
        for known in self._expressions.values():
            if known.kept is not None:
                known.kept.save()
                known.kept.drop()
        self._expressions.clear()
        self._seen.clear()
        self._units.clear()
        if not reason:
            self._restore_dropout()
        self.use.stopped = self.use.stopped or reason or ENDED

    def _note_use(self) -> None:
        self.use.seconds = self.pays.seconds
        self.use.gigabytes = max(self.use.gigabytes, self._budget.taken / 1e9)
        told = [f"{name}: {why}" for name, why in self.refused.items() if self._is_worth_telling(name, why)]
        self.use.ends = "; ".join(told[:3])
        if self._budget.problem:
            self.use.problem = f"nothing more is written to {self._folder}: {self._budget.problem}"

    def _is_worth_telling(self, name: str, why: str) -> bool:
        return why != _NOT_CALLED and any(True for _ in self._model.get_submodule(name).parameters())

    # --- parts of the front

    def _find(self) -> None:
        self._found = True
        if any(map(is_compiled, self._model.modules())):
            self.stop("the model is compiled")
            return
        self._units = {unit.name: unit for unit in find_units(self._model, self._units, self.refused)}
        quiet = [
            part
            for unit in self._units.values()
            if unit.begins and all(id(parameter) in self._quiet_parameters for parameter in unit.module.parameters())
            for part in dropouts(unit.module)
            if part.training
        ]
        for module in quiet:
            module.training = False
        self._quiet += quiet

    def _restore_dropout(self) -> None:
        for module in self._quiet:
            module.training = self._model.training
        self._quiet.clear()

    def _refuse(self, unit: Unit, why: str) -> None:
        self._found = False
        if not any(parameter.requires_grad for parameter in unit.module.parameters()):  # it may freeze again
            self.refused.setdefault(unit.name, why)

    # --- calls

    def _called(self, unit: Unit, args: tuple, kwargs: dict[str, Any]) -> Any:
        call = None
        if self._open and not self._busy and not torch.is_inference_mode_enabled() and unit.name not in self.refused:
            with self.pays.spending():
                call = self._note(unit, args, kwargs)
        if call is None:
            return unit.forward(*touched(args), **touched(kwargs))
        unit.calls += 1
        known = call.expression
        if known.checks < _CHECKS:
            return self._check(unit, call)
        if not self._defers(call):
            try:
                self._compute(call)
            except Impure as error:
                self._refuse(unit, error.args[0])
                return error.args[1]
        else:
            self._deferred[unit.name] = None
            call.copy_inputs()
        self._made.append(weakref.ref(call))
        return call.placeholders()

    def _note(self, unit: Unit, args: tuple, kwargs: dict[str, Any]) -> FrontCall | None:
        """A call of the front; ``None`` if it is not to be one."""
        leaves, spec = tree_flatten((args, kwargs))
        if not unit.begins and not any(isinstance(leaf, Placeholder) for leaf in leaves):
            return None
        leaves = [leaf.given if isinstance(leaf, Placeholder) and leaf.given is not None else leaf for leaf in leaves]
        before = [leaf.call for leaf in leaves if isinstance(leaf, Placeholder)]
        real = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Placeholder)]
        if any(leaf.requires_grad or type(leaf) not in (Tensor, nn.Parameter) or not is_plain(leaf) for leaf in real):
            return None
        if not all(isinstance(leaf, Tensor) or is_plain_value(leaf) for leaf in leaves):
            self._refuse(unit, "it is given more than tensors and plain values")
            return None
        sizes = [call.batch for call in before] or [len(leaf) for leaf in real if leaf.ndim and type(leaf) is Tensor][
            :1
        ]
        if not sizes or min(sizes) < 2 or len(set(sizes)) > 1 or not before and not unit.begins:
            return None
        try:
            state = unit.fingerprint()
        except Opaque as error:
            self._refuse(unit, str(error))
            return None
        batch, roots = sizes[0], list[Root]()
        about: list[Any] = [state.hex(), str(spec)]
        self._samples = batch
        for leaf in leaves:
            if isinstance(leaf, Placeholder):
                about.append(
                    (leaf.call.expression.key.hex(), leaf.slot, [_place(root, roots) for root in leaf.call.roots])
                )
            elif isinstance(leaf, Tensor):
                kind = str(leaf.dtype), leaf.device.type
                if type(leaf) is Tensor and leaf.ndim and len(leaf) == batch:
                    about.append((*kind, tuple(leaf.shape[1:]), _place(self._root(leaf), roots)))
                else:
                    about.append((*kind, tuple(leaf.shape), digest(leaf).hex()))
            else:
                about.append((type(leaf).__name__, repr(leaf)))
        device = before[0].device if before else real[0].device
        about.append(autocast_state(device))
        key = xxhash.xxh3_128_digest(repr(about).encode())
        known = self._expressions.setdefault(key, Expression(key))
        known.used = True
        return FrontCall(self, unit, known, roots, leaves, spec, batch, device, state)

    def _root(self, tensor: Tensor) -> Root:
        # Every time: what is written through ``.data`` does not show otherwise.
        keys, known = row_digests(tensor), self._roots.get(id(tensor))
        if known is None or known.tensor is not tensor or known.keys != keys:
            known = self._roots[id(tensor)] = Root(tensor, keys)
        return known

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
            with self.pays.spending(), self._aside():
                if not all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True) if isinstance(a, Tensor)):
                    raise Impure("it writes to its inputs", out)
                if not by_sample(call, unit.module, copies):
                    raise Impure("what it gives for a sample depends on which others share the batch", out)
                if self._folder is not None:
                    kept = self._kept(known, call)
                    places = kept.find(call.keys)
                    if places is not None and not self._agree(call, kept.read(places)):
                        raise Impure("it gives something else than what was kept", out)
        except Impure as error:
            self._refuse(unit, error.args[0])
            call.results = None
            if known.kept is not None:
                known.kept.drop()
            return error.args[1]
        known.checks += 1
        self._made.append(weakref.ref(call))
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
            known = call.expression
            places = known.kept.find(call.keys) if known.kept is not None else None
            if places is None:
                self._compute(call)
            else:
                assert known.kept is not None
                call.results = known.kept.read(places)
                self._hits += 1
                self._known += call.batch
                if self._verify:
                    self._compare(call)
            call.leaves = []
        assert call.results is not None
        return call.results

    def asked_for(self, call: FrontCall) -> list[Tensor]:
        """Those of a call, which from now on somebody else may write to."""
        results = self.outputs(call)
        call.expression.end = True
        if call.computed:
            with self.pays.spending():
                self._keep(call)
            call.computed = False
        return results

    def _compute(self, call: FrontCall) -> Any:
        if call.unit.fingerprint() != call.state:
            raise RuntimeError(
                f"cache_front: {call.unit.name} was changed after it was called and before what it gives was used. "
                "Change it elsewhere, or use cache_front=False"
            )
        for before in call.before:
            self.outputs(before)
        self._computed.add(call.unit.name)
        start = self.pays.clock(call.device, exact=call.expression.checks < _CHECKS)
        with self._aside():
            out = call.run()
        call.seconds = self.pays.clock(call.device, exact=call.expression.checks < _CHECKS) - start
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
        best = max([one.worth for one in self._expressions.values() if one.worth < math.inf], default=known.worth)
        if known.worth < _WORTH * best:
            if known.kept is not None:
                known.kept.drop()
            return
        self._misses += 1
        kept = self._kept(known, call)
        new = kept.put(call.keys, call.results)
        self._known, self._new = self._known + call.batch - new, self._new + new
        if kept.find(call.keys):
            self._seen.update(key for root in call.roots for key in root.keys)

    def _compare(self, call: FrontCall) -> None:
        """Compute once an epoch what was looked up: what a module reads from elsewhere shows in nothing else."""
        self._verify = False
        kept, call.results = call.results, None
        self._compute(call)
        assert kept is not None
        if not self._agree(call, kept):
            self.stop(f"{call.unit.name} gives something else than before, and nothing shows why")

    def _agree(self, call: FrontCall, kept: list[Tensor]) -> bool:
        coarse = self._dtype is not None or autocast_state(call.device)[2]
        return all(alike(a, b, coarse) for a, b in zip(kept, call.results or (), strict=True))


def _place(root: Root, roots: list[Root]) -> int:
    """The place of a root among others, which it joins."""
    if root not in roots:
        roots.append(root)
    return roots.index(root)
