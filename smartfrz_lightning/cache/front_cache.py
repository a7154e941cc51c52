"""FrontCache: the forward pass of a frozen front is not run again for samples that it has seen."""

from pathlib import Path

import torch
from torch import nn

from smartfrz_lightning.cache.cache_use import ENDED, CacheUse
from smartfrz_lightning.cache.calls import Calls
from smartfrz_lightning.cache.pays import Pays
from smartfrz_lightning.cache.rows import Budget
from smartfrz_lightning.cache.units import Unit, find_units
from smartfrz_lightning.private.pytorch import has_global_hooks, is_compiled

_NOT_CALLED = "it is not called itself"


class FrontCache:
    """Keep what a frozen front gives for every sample, whatever the model, the data loader and the order.

    Between ``open`` and ``close``, a module whose parameters are all frozen gives placeholders. Other such modules take
    them as they are; anything else that touches one gets the real tensor, which is looked up by the content of what
    entered the front, or computed, for the whole batch. A call is kept only if it proved to be a function of each
    sample alone. Dropout in the front is off.

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
        self._model, self._budget = model, Budget(int(gigabytes * 1e9))
        self._calls = Calls(self._budget, Path(folder) if folder else None, dtype, self._refuse, self._stop_if)
        self.use, self.pays = use or CacheUse(), pays or Pays()
        self.use.stopped = ""
        self.refused: dict[str, str] = {}
        self._units: dict[str, Unit] = {}
        self._outside: dict[str, Unit] = {}  # those that are refused: they get real tensors
        self._found = self._open = False

    @property
    def on(self) -> bool:
        """Whether it has not been switched off."""
        return not self.use.stopped

    def watch(self) -> None:
        """What is frozen has changed: look again for what belongs to the front."""
        self._found = False
        self.pays.front_changed()

    def open(self) -> None:
        """A training batch begins."""
        if self._open or not self.on or has_global_hooks():
            return
        if not self._found and any(map(is_compiled, self._model.modules())):
            self.stop("the model is compiled")
            return
        if not self._found:
            self._units = {unit.name: unit for unit in find_units(self._model, self._units, self.refused)}
        self._found = self._open = True
        for unit in self._units.values():
            unit.replace_forward(self._calls.called)
        for unit in self._outside.values():
            unit.replace_forward(self._calls.outside)
        self._calls.begin_batch()
        self.pays.batch_begins()

    def close(self) -> list[str]:
        """The batch is over, or was interrupted.

        Returns:
            Names of the modules whose forward pass was not run for it.
        """
        if not self._open:
            return []
        self._open = False
        try:
            batch = self._calls.end_batch()
        finally:
            for unit in (*self._units.values(), *self._outside.values()):
                unit.restore_forward()
        for unit in self._units.values():
            if not unit.calls and any(True for _ in unit.module.children()):  # its parts may be
                self._refuse(unit, _NOT_CALLED)
        if batch.known or batch.new:
            self.use.hits += batch.samples * (not batch.missed)
            self.use.misses += batch.samples * batch.missed
            share = batch.known / (batch.known + batch.new)
            self._stop_if(self.pays.batch_ends(share, batch.missed, self._budget.full))
        return [name for name in batch.deferred if name not in batch.computed]

    def end_epoch(self) -> None:
        """An epoch is over: files are written, what was not used goes, a cache that does not pay is switched off."""
        self._note_use()
        for unit in self._units.values():
            unit.fingerprint.forget()
        self._calls.end_epoch()
        self._stop_if(self.pays.epoch_ends(self._budget.full))

    def stop(self, reason: str = ENDED) -> None:
        """Switch off, write what is new, and give memory back.

        Args:
            reason: Why.
        """
        self.close()
        self._note_use()
        self._calls.clear()
        self._units.clear()
        self.use.stopped = self.use.stopped or reason

    def _stop_if(self, reason: str) -> None:
        if reason and self.on:
            self.stop(reason)

    def _note_use(self) -> None:
        self.use.seconds, self.use.problem = self.pays.seconds, self._budget.problem
        self.use.gigabytes = max(self.use.gigabytes, self._budget.taken / 1e9)
        told = [f"{name}: {self.refused[name]}" for name, unit in self._outside.items() if unit.begins]
        self.use.ends = "; ".join(told[:3])

    def _refuse(self, unit: Unit, why: str) -> None:
        self._found = False
        if not any(parameter.requires_grad for parameter in unit.module.parameters()):  # it may freeze again
            self.refused.setdefault(unit.name, why)
            if why != _NOT_CALLED:
                self._outside[unit.name] = unit
