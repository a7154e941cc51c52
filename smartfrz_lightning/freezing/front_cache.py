"""FrontCache: the forward pass of a frozen front is not run again for samples that it has seen."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from smartfrz_lightning.freezing.cache_use import ENDED, CacheUse
from smartfrz_lightning.freezing.dropouts import dropouts
from smartfrz_lightning.freezing.fingerprint import Opaque
from smartfrz_lightning.freezing.front_calls import FrontCalls
from smartfrz_lightning.freezing.front_units import Unit, find_units
from smartfrz_lightning.freezing.kept_rows import Budget
from smartfrz_lightning.freezing.pays import Pays
from smartfrz_lightning.private.pytorch import has_global_hooks, is_compiled

_NOT_CALLED = "it is not called itself"


class FrontCache:
    """Keep what a frozen front gives for every sample, whatever the model, the data loader and the order.

    Between ``open`` and ``close``, a module whose parameters are all frozen gives placeholders for samples that
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
        self.use = use or CacheUse()
        self.use.stopped = ""
        self.refused: dict[str, str] = {}
        self.pays = pays or Pays()
        self.calls = FrontCalls(self._budget, self.pays, self._folder, dtype, self._refuse, self.stop)
        self._units: dict[str, Unit] = {}
        self._quiet: list[nn.Module] = []
        self._quiet_parameters: set[int] = set()
        self._found = False

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
        self.calls.front_changed()
        self.pays.front_changed()

    def open(self) -> None:
        """A training batch begins."""
        for module in self._quiet:  # also when it is off: what the layers behind see is to stay the same
            module.training = False
        if self.calls.open or not self.on or has_global_hooks():
            return
        if not self._found:
            self._find()
        self.calls.open = self.on
        for unit in self._units.values():
            if "forward" not in vars(unit.module):
                unit.replace_forward(self.calls.called)
        self.pays.batch_begins()

    def close(self) -> list[str]:
        """The batch is over, or was interrupted.

        Returns:
            Names of the modules whose forward pass was not run for it.
        """
        if not self.calls.open:
            return []
        batch = self.calls.end_batch()
        for unit in self._units.values():
            unit.restore_forward()
            if not unit.called and any(True for _ in unit.module.children()):  # its parts may be
                self._refuse(unit, _NOT_CALLED)
        self.use.hits += batch.samples * bool(batch.hits and not batch.misses)
        self.use.misses += batch.samples * bool(batch.misses)
        self.pays.batch_ends(batch.hits, batch.misses, batch.known / max(1, batch.known + batch.new))
        if self.on and (reason := self.pays.unknown_again(self._budget.full)):
            self.stop(reason)
        return [name for name in batch.deferred if name not in batch.computed]

    def end_epoch(self) -> None:
        """An epoch is over: a cache that costs more than it saves is switched off."""
        self._note_use()
        for unit in list(self._units.values()):
            try:
                unit.fingerprint.read_again()
            except Opaque as error:
                self._refuse(unit, str(error))
        self.calls.end_epoch()
        if self.on and (reason := self.pays.reason_to_stop(self._budget.full)):
            self.stop(reason)

    def stop(self, reason: str = "") -> None:
        """Switch off, and give memory back.

        Args:
            reason: Why. Without, training has ended.
        """
        self.close()
        self._note_use()
        self.calls.clear()
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
