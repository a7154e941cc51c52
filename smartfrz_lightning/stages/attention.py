"""AttentionStage: the attention predictor, asked which prefix may freeze for good."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.history.movement import MovementHistory
from smartfrz_lightning.predictor.prefix import PrefixPredictor
from smartfrz_lightning.predictor.prefix_inputs import prefix_inputs
from smartfrz_lightning.stages.stage import Stage
from smartfrz_lightning.stages.start import check_shares

SNAPSHOTS = 20
"""Snapshots of a run, and the most checks."""

TRAINED = 4
"""Snapshots between which a layer has to have trained before it may freeze: the predictor has seen none of fewer."""


class AttentionStage(Stage):
    """Freeze the prefix that an attention predictor takes for finished (Li et al. 2023, SmartFRZ; this project).

    After each twentieth of the run a tailored snapshot of every layer's weights is compared with the one before. An
    attention predictor then gives p(safe) of each prefix of the network: how likely freezing it from here to the end
    costs at most 1 point of accuracy. The deepest prefix that is safe enough is frozen, at once or, in a run of 20
    epochs and more, at the end of the epoch. Nothing freezes while learning rates rise.

    Args:
        predictor: Safetensors file of a prefix predictor, or a module like
            :class:`~smartfrz_lightning.predictor.prefix.PrefixPredictor`; the shipped one by default.
        threshold: p(safe) from which a prefix freezes, between 0 and 1.
        sample_size: Sampled weights a layer.
        seed: Fixes which.

    Raises:
        FileNotFoundError: There is no such predictor file.
        ValueError: An argument is out of range, or the predictor file cannot be read.
    """

    def __init__(
        self,
        predictor: str | nn.Module | None = None,
        threshold: float = 0.8,
        sample_size: int = 1024,
        seed: int = 0,
    ) -> None:
        check_shares(threshold=threshold)
        if sample_size < 1:
            raise ValueError(f"sample_size={sample_size}: must be at least 1; the paper takes 1024")
        self._predictor = predictor if isinstance(predictor, nn.Module) else PrefixPredictor.load(predictor)
        self.threshold = threshold
        self._sample_size, self._seed = sample_size, seed

    def reset(self) -> None:
        self._history: MovementHistory | None = None
        self._first: Tensor | None = None  # loss of the first batch
        self._losses: Tensor | None = None  # sum since the last snapshot
        self._counted = 0
        self._rates, self._steps = 0.0, 0  # since then
        self._due = False
        self._told = self._froze = False
        self._best: float | None = None  # largest p(safe) of a prefix that has not been frozen here

    def start(self, run: TrainingRun) -> None:
        if run.total_batches == math.inf and not run.steps:
            run.say("Nothing freezes later in the run: its length is not known. Give max_epochs or max_steps.")
        if run.layers and self._history is None:
            self.layers_found(run)

    def layers_found(self, run: TrainingRun) -> None:
        self._history = MovementHistory(run.model, _free(run), self._sample_size, self._seed)

    def batch_done(self, run: TrainingRun, stepped: bool) -> None:
        if run.loss is not None:
            self._first = run.loss if self._first is None else self._first
            self._losses = run.loss if self._losses is None else self._losses + run.loss
            self._counted += 1

    def step_done(self, run: TrainingRun) -> None:
        if self._history is None or run.total_batches == math.inf or run.progress is None:
            return
        self._rates += max(run.latest_rates, default=0.0)
        self._steps += 1
        if run.passed(run.total_batches / SNAPSHOTS):
            if self._losses is None and not self._told:
                self._told = True
                run.say(
                    "Nothing freezes later in the run: the training loss is not known in this loop. Call "
                    "freezer.training_step(batch), or freezer.before_backward(loss)."
                )
            self._history.record(self._rates / self._steps, self._relative_loss(), run.progress)
            self._rates, self._steps, self._due = 0.0, 0, True
            self._losses, self._counted = None, 0

    def _relative_loss(self) -> float:
        """Of the batches since the last snapshot; NaN if it is not known, or no loss that shrinks to zero."""
        if self._losses is None or self._first is None or self._first <= 0:
            return math.nan
        return float(self._losses / self._first) / self._counted

    def check_due(self, run: TrainingRun) -> bool:
        return self._ready(run) and run.total_batches < SNAPSHOTS * run.batches_per_epoch

    def epoch_check_due(self, run: TrainingRun, epoch: int) -> bool:
        return self._ready(run)

    def _ready(self, run: TrainingRun) -> bool:
        held = any(layer.name in run.untrained for layer in run.frozen_layers)  # what that costs was not learned
        rising = run.rates_rise or (self._history is not None and self._history.rates_rise)
        return self._due and not held and not rising and run.batches < run.total_batches

    def select(self, run: TrainingRun) -> dict[str, float]:
        free = _free(run)
        assert self._history is not None
        safe = self._safe(run, self._history)
        depth = max((number for number, share in enumerate(safe, 1) if share >= self.threshold), default=0)
        active = {layer.name for layer in run.active}
        chosen = {layer.name: safe[depth - 1] for layer in free[:depth] if layer.name in active}
        self._froze |= bool(chosen)
        self._best = max([self._best or 0.0, *(share for share in safe if share < 1)])
        return chosen

    def _safe(self, run: TrainingRun, history: MovementHistory) -> list[float]:
        """p(safe) of every prefix; a deeper one is never safer."""
        movement, frozen = history.movement(), [layer.name in set(run.frozen) for layer in _free(run)]
        if not movement.losses.isfinite().all() or not movement.moved.isfinite().all():
            return []
        seen, context = prefix_inputs(movement, frozen)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            odds = self._predictor(seen, context)
        young = ((movement.moved > 0).sum(0) < TRAINED) & ~torch.tensor(frozen)
        whole = torch.tensor(frozen).int().cummin(0).values.bool()  # all of the prefix is frozen by now
        odds = odds.masked_fill(young, -math.inf).masked_fill(whole, math.inf)
        return odds.cummin(0).values.sigmoid().tolist()

    def decision_applied(self, run: TrainingRun) -> None:
        self._due = False

    def end(self, run: TrainingRun) -> None:
        if self._best is not None and not self._froze and run.is_first_process:
            run.say(
                f"Nothing froze after the start: p(safe) was {self._best:.2f} at most, and has to be "
                f"{self.threshold:.2f}."
            )
        self._best = None

    def method_state(self) -> dict[str, Any]:
        if self._history is None:
            return {}
        own = {"first": self._first, "losses": self._losses, "counted": self._counted, "rates": self._rates}
        return {"history": self._history.state_dict(), "steps": self._steps, "due": self._due, **own}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        self.layers_found(run)
        if self._history is None or not state:
            return
        self._history.load_state_dict(state["history"])
        self._first, self._losses, self._counted = state["first"], state["losses"], state["counted"]
        self._rates, self._steps, self._due = state["rates"], state["steps"], state["due"]


def _free(run: TrainingRun) -> list:
    return [layer for layer in run.layers if not layer.always_trains]
