"""LaterStage: which prefix may freeze for good, asked after each twentieth of a run."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.predictor.later import LaterPredictor, later_inputs
from smartfrz_lightning.stages.schedule import Schedule
from smartfrz_lightning.stages.stage import Stage
from smartfrz_lightning.stages.start import check_shares, deepest

CHECKS = 20
"""Checks of a run, at most."""

EARLIEST = 0.4
"""Share of the run before which nothing freezes: what is safe so early, the recorded runs hardly tell."""

TRAINED = 4
"""Twentieths of the run for which a layer has to train before it may freeze."""


class LaterStage(Stage):
    """Freeze the prefix that need not train any longer (this project).

    After each twentieth of the run a predictor gives p(safe) of each prefix of the network: how likely freezing it from
    here to the end costs at most 1 point of accuracy, by its depth, what is left of the run, and how far the training
    loss has fallen below that of the start: the first batch's or, if that is lower, the mean of the first
    twentieth. The deepest prefix that is safe enough, of at most two thirds of the layers, is frozen, at once or, in a
    run of 20 epochs and more, at the end of the epoch. Nothing freezes in the first two fifths of the run, while
    learning rates rise, or before a layer has trained for a fifth of the run.

    After two fifths of a long run it also decides, by the same p(safe), how much of a prefix that is frozen from the
    start stays frozen; the rest trains again. Where the training loss is not known all of it does. In a short run all
    of it stays to the end, and nothing else freezes; how this depends on the length, see
    ``smartfrz_lightning.stages.schedule``.

    The predictor has learned from recorded runs what freezing costs. An attention over the window of snapshots, as in
    the paper, was no better on networks that it had not seen (``research/later_predictor.md``).

    Args:
        predictor: Safetensors file of a later predictor, or a module that gives the log-odds of
            ``later_inputs``; the shipped one by default.
        threshold: p(safe) from which a prefix freezes, or stays frozen, between 0 and 1.
        schedule: When that is asked, by the length of the run.

    Raises:
        FileNotFoundError: There is no such predictor file.
        ValueError: An argument is out of range, or the predictor file cannot be read.
    """

    def __init__(
        self, predictor: str | nn.Module | None = None, threshold: float = 0.85, schedule: Schedule | None = None
    ) -> None:
        check_shares(threshold=threshold)
        self._predictor = predictor if isinstance(predictor, nn.Module) else LaterPredictor.load(predictor)
        self.threshold, self.schedule = threshold, schedule or Schedule()

    def reset(self) -> None:
        self._first: Tensor | None = None  # loss at the start
        self._losses: Tensor | None = None  # sum of those since the last check
        self._batches = 0
        self._rates, self._steps = 0.0, 0  # since then
        self._twentieth: int | None = None  # of a run of so many batches
        self._length = math.inf
        self._means: list[float] = []  # learning rates of the last two twentieths
        self._trained: dict[str, int] = {}  # twentieths of each layer
        self._loss = math.nan  # of the last twentieth, relative to that of the start
        self._due = self._told = self._froze = False
        self._asked = False  # how much stays of a prefix that was frozen from the start
        self._best: float | None = None  # largest p(safe) of a prefix that has not been frozen

    def start(self, run: TrainingRun) -> None:
        if not run.steps:  # also of a further fit of the same model
            self.reset()
        if run.total_batches != self._length:  # a resumed run may have others: the next step shows where it is
            self._length, self._twentieth = run.total_batches, None
        if run.total_batches == math.inf and not run.steps:
            run.say(
                "Nothing freezes later in the run: its length is not known. Give max_steps, or max_epochs and a data "
                "loader with a length."
            )

    def batch_done(self, run: TrainingRun, stepped: bool) -> None:
        if run.loss is not None:
            loss = run.loss.float()  # a sum in bfloat16 would stall
            self._first = loss if self._first is None else self._first
            self._losses = loss if self._losses is None else self._losses + loss
            self._batches += 1

    def step_done(self, run: TrainingRun) -> None:
        if run.total_batches == math.inf:
            return
        self._rates += max(run.latest_rates, default=0.0)
        self._steps += 1
        twentieth = int(CHECKS * (run.progress or 0.0) + 1e-6)  # batches an epoch may change while it runs
        before, self._twentieth = self._twentieth, twentieth
        if before in (None, twentieth):
            return
        losses = torch.full((2,), math.nan, dtype=torch.float)
        if self._first is not None and self._losses is not None:
            losses = torch.stack([self._first.to(self._losses), self._losses / self._batches])
        first, mean = run.mean(losses)
        if not self._means and self._losses is not None:  # a new head may be far too sure in the first batch
            first = self._first = torch.fmin(first, mean)
        tells = bool(first > 0 and mean > 0)
        self._loss = float(mean / first) if tells else math.nan
        if not tells and not self._told:
            self._told = True
            run.say(
                "Nothing freezes later in the run: the training loss is not known in this loop. Call "
                "freezer.training_step(batch), or freezer.before_backward(loss)."
                if self._losses is None
                else "Nothing freezes later while the training loss is not positive, as this stage goes by how far it "
                f"has fallen: {float(first):.3g} at the start, now {float(mean):.3g}."
            )
        self._means = [*self._means, self._rates / self._steps][-2:]
        for layer in run.active:
            self._trained[layer.name] = self._trained.get(layer.name, 0) + 1
        self._losses, self._batches, self._rates, self._steps, self._due = None, 0, 0.0, 0, True

    def check_due(self, run: TrainingRun) -> bool:
        if run.total_batches == math.inf:
            return self._may_release(run) and bool(self._undecided(run))
        return run.total_batches < CHECKS * run.batches_per_epoch and self._ready(run)

    def epoch_check_due(self, run: TrainingRun, epoch: int) -> bool:
        return self._ready(run)

    def _ready(self, run: TrainingRun) -> bool:
        if not self._due:
            return False
        if self._undecided(run):  # to freeze more, with that frozen, is not what was learned
            return self._may_release(run)
        rising = run.rates_rise or len(self._means) < 2 or self._means[1] > self._means[0] * (1 + 1e-6)
        return run.progress is not None and EARLIEST - 1e-6 <= run.progress < 1 and not rising

    def _undecided(self, run: TrainingRun) -> list[Layer]:
        """Frozen layers that have never trained, until it is decided how many of them stay so."""
        return [] if self._asked else [layer for layer in run.frozen_layers if layer.name in run.untrained]

    def _may_release(self, run: TrainingRun) -> bool:
        return run.steps >= self.schedule.frozen_until(self.schedule.known(run.total_steps))

    def select(self, run: TrainingRun) -> Decision:
        free = [layer for layer in run.layers if not layer.always_trains]
        if prefix := self._undecided(run):
            return self._released(run, prefix, free)
        safe = self._safe(run, free)
        depth = max((number for number, share in enumerate(safe, 1) if share >= self.threshold), default=0)
        active = {layer.name for layer in run.active}
        chosen = {layer.name: safe[depth - 1] for layer in free[:depth] if layer.name in active}
        self._froze |= bool(chosen)
        if chosen:
            run.say(
                f"Layers freeze for good after {run.progress:.0%} of the run: {len(chosen)} more, the first {depth} of "
                f"{len(free)} in all: p(safe) {safe[depth - 1]:.2f}, with the training loss at {self._loss:.2g} of "
                "its value at the start."
            )
        self._best = max([self._best or 0.0, *(share for share in safe if share < 1)])
        return Decision(chosen)

    def _released(self, run: TrainingRun, prefix: list[Layer], free: list[Layer]) -> Decision:
        """What trains again of a prefix that is frozen from the start."""
        odds = self._odds(run, free)
        safe = [] if odds is None else odds.cummin(0).values.sigmoid().tolist()
        depth = sum(share >= self.threshold for share in safe)
        names = {layer.name for layer in free[:depth]}
        thawed = [layer.name for layer in prefix if layer.name not in names]
        why = "p(safe) is not known"
        if safe:
            why = (
                f"p(safe) of the whole prefix is {safe[len(prefix) - 1]:.2f} and has to be {self.threshold:.2f}, with "
                f"the training loss at {self._loss:.2g} of its value at the start"
            )
        run.say(
            f"{len(prefix) - len(thawed)} of the {len(prefix)} layers that were frozen from the start stay frozen "
            f"after {run.steps} steps: {why}."
        )
        return Decision(thaw=thawed)

    def _odds(self, run: TrainingRun, free: list[Layer]) -> Tensor | None:
        """Log-odds that freezing a prefix is safe, of each; ``None`` if the loss or the length is not known."""
        if not math.isfinite(self._loss) or run.progress is None:
            return None
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self._predictor(later_inputs(len(free), run.progress, self._loss))

    def _safe(self, run: TrainingRun, free: list[Layer]) -> list[float]:
        """p(safe) of every prefix; a deeper one is never safer."""
        odds = self._odds(run, free)
        if odds is None:
            return []
        frozen = torch.tensor([layer.name in set(run.frozen) for layer in free])
        young = torch.tensor([self._trained.get(layer.name, 0) < TRAINED for layer in free])
        whole = frozen.int().cummin(0).values.bool()  # all of the prefix is frozen by now
        young[deepest(len(free)) :] = True
        odds = odds.masked_fill(young & ~frozen, -math.inf).masked_fill(whole, math.inf)
        return odds.cummin(0).values.sigmoid().tolist()

    def earliest(self, layers: int, depth: int, loss: float) -> float | None:
        """The share of a run from which a prefix would be frozen, ``None`` if never."""
        if depth > deepest(layers):
            return None
        for check in range(math.ceil(EARLIEST * CHECKS - 1e-6), CHECKS):
            with torch.no_grad():
                odds = self._predictor(later_inputs(layers, check / CHECKS, loss))[:depth]
            if float(odds.min().sigmoid()) >= self.threshold:
                return check / CHECKS
        return None

    def decision_applied(self, run: TrainingRun) -> None:
        self._due, self._asked = False, True

    def changed(self, run: TrainingRun, frozen: Collection[str], thawed: Collection[str]) -> None:
        for name in thawed:
            self._trained.pop(name, None)

    def end(self, run: TrainingRun) -> None:
        if self._best and not self._froze and run.is_first_process:
            run.say(
                f"Nothing froze after the start: p(safe) was {self._best:.2f} at most, and has to be "
                f"{self.threshold:.2f}."
            )
        self._best = None

    def method_state(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in _STATE}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        for name in _STATE:
            setattr(self, f"_{name}", state[name])


_STATE = ("first", "losses", "batches", "rates", "steps", "length", "twentieth", "means", "trained", "loss", "due")
_STATE += ("told", "froze", "asked")
