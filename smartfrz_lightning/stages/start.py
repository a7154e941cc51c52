"""StartStage: watch gradients in the first steps, and freeze a prefix before training begins."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.layers.untrained import has_adapters, untrained_end
from smartfrz_lightning.predictor.start import StartPredictor, start_inputs
from smartfrz_lightning.stages.probe import Probe
from smartfrz_lightning.stages.schedule import Schedule
from smartfrz_lightning.stages.stage import Stage

SHARE, MOST, LEAST = 0.02, 30, 2
"""A probe's length: a share of the run, the most steps, and the least that tell anything."""

DEEPEST = 2 / 3
"""Share of the layers that freezes at most: what is deeper cost most in the recorded runs."""

_OVERFLOWS = 10  # steps more, where gradients were not finite


def probe_length(steps: float) -> int:
    """Steps of the probe of a run: 2 %, but at most 30."""
    return int(min(MOST, SHARE * steps + 1e-6))


class StartStage(Stage):
    """Freeze the prefix that need not train at all (this project).

    In the first 2 % of the steps the head alone moves, while the gradients of all layers are watched. A predictor then
    gives p(safe) of each prefix (the first layer, the first two, ...): how likely freezing it for the whole run ends at
    most 2 points of accuracy below full training. Of those that are safe enough, of at most two thirds of the layers,
    the one that saves most is frozen. Layers with the random weights that they were made with always train.

    Args:
        predictor: Safetensors file of a start predictor, or a module that gives the log-odds of
            ``start_inputs``; the shipped one by default.
        threshold: p(safe) from which a prefix is frozen; by default 0.65 in a short run in which a trial follows, and
            0.8 in others.
        probe_steps: Steps of the probe; 2 % of the run by default, 30 at most. A run of fewer than 100 steps has none.
        schedule: How the rules depend on the length of the run.

    Attributes:
        save: Share of the FLOPs of the run that is to be saved; ``None`` for as much as is safe. Of the prefixes that
            save as much to the end, the trial included, the safest one is frozen.
        verified: Whether a ``VerifyStage`` follows. ``SmartFreezeCallback`` sets both.
        answer: What it decided; empty before.
        safe: p(safe) of every prefix, from the first layer alone to all before the head; empty before.

    Raises:
        FileNotFoundError: There is no such predictor file.
        ValueError: An argument is out of range, or the predictor file cannot be read.
    """

    def __init__(
        self,
        predictor: str | nn.Module | None = None,
        threshold: float | None = None,
        probe_steps: int | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        if threshold is not None:
            check_shares(threshold=threshold)
        if probe_steps is not None and (not isinstance(probe_steps, Integral) or probe_steps < LEAST):
            raise ValueError(f"probe_steps={probe_steps!r}: must be a whole number of at least {LEAST}")
        self._predictor = predictor if isinstance(predictor, nn.Module) else StartPredictor.load(predictor)
        self.schedule = schedule or Schedule()
        self.threshold, self.probe_steps = threshold, probe_steps
        self.save: float | None = None
        self.verified = True

    def reset(self) -> None:
        self._probe: Probe | None = None
        self._probing = False  # also across a resume
        self._taken = 0  # steps of the probe
        self._due = False
        self.answer = Decision()
        self.safe: list[float] = []

    def busy(self, run: TrainingRun) -> bool:
        return self._probe is not None or self._due

    def start(self, run: TrainingRun) -> None:
        if (run.steps and not self._probing) or self._probe is not None:
            return
        self._probing = False
        if why := self._why_not(run):
            run.say(f"Nothing is frozen at the start: {why}.")
            return
        self._probe = Probe(run.model, run.optimizers)
        self._probing, self._taken = True, 0
        if run.layers:
            self.layers_found(run)

    def _why_not(self, run: TrainingRun) -> str:
        if self.probe_steps is None and probe_length(run.total_batches) < LEAST:
            return _too_short(run.total_batches)
        if self.probe_steps is not None and self.probe_steps >= run.total_batches:  # as with fast_dev_run
            return f"probe_steps={self.probe_steps}, and the run has only {run.total_batches:g} batches"
        if any(isinstance(optimizer, LBFGS) for optimizer in run.optimizers):
            return "LBFGS asks for gradients many times a step"
        if run.begun_before:
            return "training had begun before"
        if run.frozen:
            return f"{len(run.frozen)} layers are frozen from an earlier fit; thaw() lets them train again"
        return ""

    def before_batch(self, run: TrainingRun) -> None:
        if self._probe is not None:
            self._probe.before_batch()

    def layers_found(self, run: TrainingRun) -> None:
        if self._probe is None:
            return
        if not run.active:
            self._give_up(run, "no layer but the head trains")
        else:
            self._probe.watch(run.layers)

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        if self._probe is not None:
            self._probe.take_gradients(optimizer)

    def optimizer_stepped(self, run: TrainingRun, optimizer: Optimizer) -> None:
        if self._probe is not None:
            self._probe.optimizer_stepped()

    def batch_done(self, run: TrainingRun, stepped: bool) -> None:
        if self._probe is None or not run.layers:
            return
        if stepped and not self._probe.looked:
            if self._probe.steps:
                self._probe.set_aside()
            self._give_up(run, "the gradients of its first step were not seen, as happens with step(closure)")
        else:
            self._probe.batch_done(stepped)

    def step_done(self, run: TrainingRun) -> None:
        if self._probe is None:
            return
        self._taken += 1
        if self._taken < LEAST:  # the second one shows how many batches make a step
            return
        batches = run.batches / run.progress if run.progress else math.inf
        whole = batches / (run.batches - run.batches_before)
        steps = probe_length(whole) if self.probe_steps is None else self.probe_steps
        if steps < LEAST:
            self._give_up(run, _too_short(whole))
            return
        if self._probe.steps < LEAST:  # gradients of the first steps overflow under AMP
            steps += _OVERFLOWS
        if self._taken >= steps:  # on every process, as sharded weights are gathered
            self._due, self.answer = True, self._choose(run, self._probe)

    def epoch_done(self, run: TrainingRun) -> None:
        if self._probe is not None:
            self._probe.optimizer_stepped()  # a batch that was begun may have been skipped

    def check_due(self, run: TrainingRun) -> bool:
        return self._due

    def select(self, run: TrainingRun) -> Decision:
        return self.answer

    def decision_applied(self, run: TrainingRun) -> None:
        self._probe, self._probing, self._due = None, False, False

    def end(self, run: TrainingRun) -> None:
        if self._probe is None:
            return
        self._probe.optimizer_stepped()  # the batch may have been interrupted
        if run.steps and run.layers:
            self._give_up(
                run,
                f"training ended after {run.steps} steps, within the probe, in which nothing trains for good. Give the "
                "Trainer max_epochs or max_steps and a data loader with a length, so that its length is known, or "
                "fewer probe_steps, or start=False",
            )
        self._probe = None

    def _give_up(self, run: TrainingRun, why: str) -> None:
        self._probe, self._probing = None, False
        run.say(f"Nothing is frozen at the start: {why}.")

    # --- the choice

    def _choose(self, run: TrainingRun, probe: Probe) -> Decision:
        free = [number for number, layer in enumerate(run.layers) if not layer.always_trains]
        if run.cost is None or not run.cost.full.total:
            run.say("Nothing is frozen at the start: the FLOPs of a step are not known.")
            return Decision()
        if probe.steps < LEAST or not free:
            run.say(f"Nothing is frozen at the start: the probe saw {probe.steps} steps and {len(free)} layers.")
            return Decision()
        gradients, weights = probe.gradients()[:, free], probe.weights()[free]
        layers = [run.layers[number] for number in free]
        names = [layer.name for layer in layers]
        sizes = [float(layer.size) for layer in layers]
        sizes.append(sum(layer.size for layer in run.layers) - sum(sizes))
        silent = (gradients == 0).all(2).all(0) | (weights == 0).all(1)
        if silent.any() and has_adapters(run.model):
            run.say("Nothing is frozen at the start: adapters have no gradients yet that tell anything.")
            return Decision()
        costs = [run.cost.relative(names[: count + 1]) for count in range(len(names))]
        tried = self._tried(run)
        shift = 0.0 if tried else probe.shift()
        inputs = start_inputs(gradients, weights, torch.tensor(sizes), shift)
        self.safe = safe = self._predictor(inputs).sigmoid().tolist()
        able = len(names) - untrained_end(run.model, layers, silent.tolist())
        if not able:
            run.say("Nothing is frozen at the start: no layer that trains has been trained before.")
            return Decision()
        able = min(able, deepest(len(names)))
        scheduled = self.schedule.threshold(run.total_steps) if tried else self.schedule.unverified
        threshold = self.threshold or scheduled
        count = choose_prefix(costs[:able], safe[:able], threshold, self._to_save(run))
        of = f"After a probe of {probe.steps} steps"
        if not count:
            run.say(
                f"{of} nothing is frozen: p(safe) is {max(safe[:able]):.2f} at most, and has to be {threshold:.2f}."
            )
            return Decision()
        run.say(
            f"{of} {count} of {len(names)} layers are frozen: p(safe) {safe[count - 1]:.2f}, saving "
            f"{1 - costs[count - 1]:.0%} of a step."
        )
        return Decision(dict(zip(names[:count], safe, strict=False)), untrained=True)

    def _to_save(self, run: TrainingRun) -> float | None:
        """Share of a step that is to be saved from now on, for ``save`` and what a trial costs."""
        if self.save is None or run.total_steps == math.inf:
            return self.save
        costs = self.schedule.trial_length(run.total_steps) / run.total_steps if self._tried(run) else 0.0
        return (self.save + costs) / max(1 - (run.progress or 0.0), 1e-6)

    def _tried(self, run: TrainingRun) -> bool:
        return self.verified and not run.cannot_verify

    def method_state(self) -> dict[str, Any]:
        return {"probing": self._probing}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        self._probing = state["probing"]  # a probe that was interrupted begins again


def deepest(layers: int, most: float = DEEPEST) -> int:
    """How many of so many layers may freeze, if a share of them may."""
    return max(1, int(most * layers + 1e-6))


def _too_short(steps: float) -> str:
    needs = math.ceil(LEAST / SHARE)
    return f"that needs a run of {needs} steps, and this one has {steps:g}; give start=StartStage(probe_steps=...)"


def choose_prefix(costs: Sequence[float], safe: Sequence[float], threshold: float, save: float | None = None) -> int:
    """How many layers to freeze: of the prefixes that are safe enough, the one that saves most.

    Costs are relative to full training. Of those that save ``save``, a share of a step, the safest one is taken.
    """
    able = [number for number, share in enumerate(safe) if share >= threshold]
    enough = [number for number in able if save is not None and costs[number] <= 1 - save + 1e-9]
    if enough:
        return 1 + max(enough, key=lambda number: safe[number])
    return 1 + min(able, key=lambda number: costs[number]) if able else 0


def check_shares(**shares: float) -> None:
    """Raise ``ValueError`` for an argument that is not a number between 0 and 1."""
    for name, value in shares.items():
        if not isinstance(value, Real) or not 0 < value < 1:
            raise ValueError(f"{name}={value!r}: must be a number between 0 and 1")
