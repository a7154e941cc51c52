"""ProbedStart: a probe in the first steps of a run, and which front is held after it."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from smartfrz_lightning.cost.layer_flops import front_costs
from smartfrz_lightning.engine.probe import Probe
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.layers.untrained import untrained_end
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.start_inputs import relative_gradients, start_inputs
from smartfrz_lightning.report.timeline import Start

SHARE, MOST, LEAST = 0.02, 30, 2
"""A probe's length: a share of the run, the most steps, and the least that tell anything."""

LONGEST = MOST / SHARE
"""Steps of the run from which on its probe is no longer; a run without a known length counts as one of them."""

_OVERFLOWS = 10  # steps more, where gradients were not finite


def probe_length(steps: float) -> int:
    """Steps of the probe of a run: 2 %, but at most 30.

    Example:
        >>> from smartfrz_lightning.engine.probed_start import probe_length
        >>> probe_length(200), probe_length(100_000), probe_length(float("inf"))
        (4, 30, 30)
    """
    return int(min(MOST, SHARE * steps + 1e-6))


class ProbedStart:
    """Watches the first steps of a run and decides which front is held.

    Args:
        predictor: Says how likely it does no harm to hold a front.
        threshold: Hold the front that saves most among those for which this likelihood is reached, 0 to 1. It may be
            set until the probe ends.
        save: Instead: hold the front that does most likely no harm among those that save this share of a step's FLOPs.
        steps: Length of the probe; by default :func:`probe_length` of the run.
        sample_size: Watched weights a layer.
        seed: Fixes which.

    Attributes:
        checked: Whether what is held is looked at again. If not, inputs whose statistics are far from those that the
            network was trained on make a front less likely: most such fronts do harm, and nobody finds the others out.

    Example:
        >>> from smartfrz_lightning.engine.probed_start import ProbedStart
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> ProbedStart(StartPredictor(), threshold=0.8).running
        False
    """

    def __init__(
        self,
        predictor: StartPredictor,
        threshold: float,
        save: float | None = None,
        steps: int | None = None,
        sample_size: int = 1024,
        seed: int = 0,
    ) -> None:
        self._predictor, self.threshold, self._save, self._steps = predictor, threshold, save, steps
        self._sample_size, self._seed = sample_size, seed
        self._probe: Probe | None = None
        self.checked = False

    @property
    def running(self) -> bool:
        """Whether the probe goes on."""
        return self._probe is not None

    def begin(self, run: TrainingRun) -> str:
        """The first step is about to begin; returns why nothing is probed, or nothing.

        Raises:
            ValueError: The run is known to be no longer than the probe.
        """
        if self._steps is not None and self._steps >= run.total_batches:
            raise ValueError(f"probe_steps={self._steps}: the run has only {run.total_batches:g} batches; take fewer")
        run.timeline.start = None
        if self._steps is None and probe_length(run.total_batches) < LEAST:
            run.timeline.start = Start(0, {}, {}, [])
            return ""
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in run.optimizers):
            return "LBFGS asks for gradients many times a step"
        if run.begun_before:
            return "training had begun before, so that the front has moved"
        self._probe = Probe(run.model, run.optimizers, self._sample_size, self._seed)
        return ""

    def layers_found(self, run: TrainingRun) -> None:
        """The layers of the model are known."""
        if self._probe is not None:
            self._probe.watch(run.layers)
            if not run.active:  # only the head trains as it is
                self._probe, run.timeline.start = None, Start(0, {}, {}, [])

    def gradients_ready(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""
        if self._probe is not None:
            self._probe.take_gradients(optimizer)

    def step_done(self, run: TrainingRun) -> bool:
        """A step of the probe is done; whether it was the last one.

        Then all is as it was before the run, and what was decided stands in the run's timeline.
        """
        assert self._probe is not None
        if not self._probe.looked:
            self.give_up("the optimizer steps with a closure, whose gradients are not seen in this loop")
            return False
        self._probe.step_done()
        whole = run.total_steps
        steps = probe_length(whole) if self._steps is None else self._steps
        if self._probe.steps < LEAST <= steps:  # gradients of the first steps overflow under AMP
            steps += _OVERFLOWS
        if run.steps < steps:
            return False
        shift = 0.0 if self.checked else self._probe.shift()
        self._probe.put_back()
        run.timeline.start = run.agree(self._decide(run, self._probe, whole, shift))
        self._probe = None
        return True

    def end(self, run: TrainingRun) -> None:
        """Training is over, or broke off."""
        if self._probe is not None and run.timeline.steps:
            self.give_up(
                f"training ended after {run.timeline.steps} steps, within the probe: only the head has trained. Give "
                "the Trainer max_epochs or max_steps and a data loader with a length, so that its length is known, "
                "or fewer probe_steps, or start='none'"
            )
        self._probe = None

    def give_up(self, why: str) -> None:
        """There will be no decision; what has moved stays as it is."""
        self._probe = None
        warnings.warn(f"start='probe': {why}; nothing is held", stacklevel=2)

    def _decide(self, run: TrainingRun, probe: Probe, whole: float, shift: float) -> Start:
        start = Start(probe.steps, {}, {}, [])
        free = [number for number, layer in enumerate(run.layers) if not layer.pinned]
        full = run.timeline.states[0].flops
        if probe.steps < LEAST or not free or not full.total:
            return start
        gradients, weights = probe.gradients()[:, free], probe.weights()[free]
        names = [run.layers[number].name for number in free]
        sizes = [run.layers[number].size for number in free]
        sizes.append(sum(layer.size for layer in run.layers) - sum(sizes))
        costs = front_costs(run.timeline.costs, full, names)
        steps = min(whole, LONGEST)  # of a run without a known length only this much is known
        inputs = start_inputs(gradients, weights, torch.tensor(costs), torch.tensor(sizes), steps, shift)
        sure = self._predictor(inputs).sigmoid().tolist()
        start.profile = dict(zip(names, relative_gradients(gradients, weights).tolist(), strict=True))
        start.sure = dict(zip(names, sure, strict=True))
        silent = (gradients == 0).all(2).all(0).tolist()
        end = untrained_end(run.model, [run.layers[number] for number in free], silent)
        start.untrained = names[len(names) - end :]
        # Random weights are not worth keeping. Who asks for a saving gets it from them, too.
        able = len(names) - end if self._save is None else len(names)
        start.held = names[: choose_front(costs[:able], sure[:able], self.threshold, self._save)]
        return start

    def state_dict(self) -> dict[str, Any]:
        """What a resumed probe needs."""
        if self._probe is None:
            return {}
        return {"sharded": True} if self._probe.sharded else self._probe.state_dict()

    def load_state_dict(self, state: dict[str, Any], run: TrainingRun) -> None:
        """Go on."""
        self._probe = None
        if state:
            if "sharded" in state:
                raise ValueError(
                    "this checkpoint is from the middle of the probe, of which sharded parameters (FSDP2) cannot be "
                    "resumed: take a later one, or begin anew"
                )
            self._probe = Probe(run.model, run.optimizers, self._sample_size, self._seed)
            self._probe.load_state_dict(state)
            self._probe.watch(run.layers)


def choose_front(costs: Sequence[float], sure: Sequence[float], threshold: float, save: float | None = None) -> int:
    """How many layers to hold.

    Args:
        costs: What a step costs with the first layer held, with the first two, and so on, relative to full training.
        sure: How likely each of these does no harm.
        threshold: The least likelihood that is accepted.
        save: Instead the least share of a step that is to be saved; if no front saves as much, the one that saves most.

    Example:
        >>> from smartfrz_lightning.engine.probed_start import choose_front
        >>> costs, sure = [0.9, 0.7, 0.5, 0.3], [0.95, 0.9, 0.8, 0.2]
        >>> choose_front(costs, sure, threshold=0.85), choose_front(costs, sure, threshold=0.99)
        (2, 0)
        >>> choose_front(costs, sure, threshold=0.85, save=0.5)
        3
    """
    fronts = range(len(costs))
    if save is None:
        able = [number for number in fronts if sure[number] >= threshold]
        return 1 + min(able, key=lambda number: costs[number]) if able else 0
    able = [number for number in fronts if costs[number] <= 1 - save + 1e-9] or [costs.index(min(costs))]
    return 1 + max(able, key=lambda number: sure[number])
