"""Decider: asks a method, makes all processes agree, and has the answer applied."""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from smartfrz_lightning.engine.frozen import FrozenLayers
from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.processes import Processes
from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.freezing.compiled import allow_recompiling
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.report.ledger import Ledger


class Decider:
    """What changes in a training, and when."""

    def __init__(
        self,
        method: FreezingMethod,
        run: TrainingRun,
        frozen: FrozenLayers,
        ledger: Ledger,
        processes: Processes,
    ) -> None:
        self._method, self._run = method, run
        self._frozen, self._ledger, self._processes = frozen, ledger, processes
        self._told: set[str] = set()

    def step_done(self) -> None:
        """A step is done; the method is asked if it wants to be."""
        if escaped := self._frozen.escaped():
            self._give_up(escaped)
        if self._method.check_due(self._run):
            self.check()

    def check(self) -> None:
        """Ask the method, and do what it says."""
        if not self._run.active and not (self._method.thaws and self._run.frozen):
            return
        answer = Decision.of(self._method.select(self._run)) if self._run.is_first_process else None
        self.change(self._processes.agree(answer), "select")
        self._method.decision_applied(self._run)

    def change(self, decision: Decision, where: str = "change") -> None:
        """Apply a decision, on every process.

        Args:
            decision: Bare names or with confidences. The last thing that an optimizer trains is left to it.
            where: Which method of the user's gave it.

        Raises:
            ValueError: There is no such layer.
        """
        decision, run = Decision.of(decision), self._run
        unknown = {*decision.freeze, *decision.thaw} - {layer.name for layer in run.layers}
        if unknown:
            raise ValueError(
                f"{type(self._method).__name__}.{where} returned {sorted(unknown)}, which are no layers' names"
            )
        thawed = [layer for layer in run.layers if layer.name in decision.thaw and layer.name in set(run.frozen)]
        chosen = [layer for layer in run.active if layer.name in decision.freeze]
        stopped = self._frozen.leave_one_training(chosen, thawed)
        for name in [layer.name for layer in chosen if layer not in stopped and layer.name not in self._told]:
            self._told.add(name)
            run.say(f"{name!r} goes on training: it is the last thing that one of the optimizers trains.")
        if not stopped and not thawed:
            return
        self._frozen.change(stopped, thawed)
        confidence: Mapping[str, float | None] = dict(decision.freeze)  # type: ignore[arg-type]
        now, names = {layer.name: confidence[layer.name] for layer in stopped}, [layer.name for layer in thawed]
        run.confidence |= {name: value for name, value in now.items() if value is not None and not math.isnan(value)}
        if decision.untrained:
            run.untrained |= set(now)
        elif run.global_steps > 1:  # what is frozen before it trained has the statistics that belong to its weights
            self._frozen.recalibrate(stopped)
        self._ledger.change(now, names, run.epoch, run.global_steps)
        allow_recompiling(self._ledger.patterns)
        self._method.changed(run, list(now), names)

    def pin(self, layers: Sequence[Layer]) -> None:
        """These are the layers from now on."""
        self._run.layers = self._ledger.timeline.layers = list(layers)

    def _give_up(self, names: Collection[str]) -> None:
        """Layers that the user's code thawed train again, and are left alone from now on."""
        first = ", ".join(list(names)[:3])
        warnings.warn(
            f"something set requires_grad=True on {len(names)} layers that {type(self._method).__name__} had frozen "
            f"({first}): they train again and are left alone from now on. Name them in exclude, or do not set "
            "requires_grad on parameters that do not have it",
            stacklevel=2,
        )
        self.pin(
            [replace(layer, always_trains="thawed") if layer.name in names else layer for layer in self._run.layers]
        )
        self.change(Decision(thaw=names))
