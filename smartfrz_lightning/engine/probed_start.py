"""ProbedStart: a probe in the first steps of a run, and which front is held after it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from smartfrz_lightning.cost.layer_flops import flops_when_frozen
from smartfrz_lightning.engine.probe import Probe
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.start_inputs import relative_gradients, start_inputs
from smartfrz_lightning.report.timeline import Start

SHARE, MOST, LEAST = 0.02, 30, 2
"""A probe's length: a share of the run, the most steps, and the least that tell anything."""


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
        threshold: Hold the front that saves most among those for which this likelihood is reached, 0 to 1.
        save: Instead: hold the front that does most likely no harm among those that save this share of a step's FLOPs.
        steps: Length of the probe; by default :func:`probe_length` of the run.
        sample_size: Watched weights a layer.
        seed: Fixes which.

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
        self._predictor, self._threshold, self._save, self._steps = predictor, threshold, save, steps
        self._sample_size, self._seed = sample_size, seed
        self._probe: Probe | None = None

    @property
    def running(self) -> bool:
        """Whether the probe goes on."""
        return self._probe is not None

    def begin(self, run: TrainingRun) -> None:
        """The first step is about to begin."""
        self._probe = Probe(run.model, self._sample_size, self._seed)

    def layers_found(self, layers: Sequence[Layer]) -> None:
        """These are the layers of the model."""
        if self._probe is not None:
            self._probe.watch(layers)

    def gradients_ready(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""
        if self._probe is not None:
            self._probe.take_gradients(optimizer)

    def step_done(self, run: TrainingRun) -> bool:
        """A step of the probe is done; whether it was the last one.

        Then all is as it was before the run, and what was decided stands in the run's timeline.
        """
        assert self._probe is not None
        self._probe.step_done()
        whole = run.timeline.steps / run.progress if run.progress else math.inf
        if run.timeline.steps < (probe_length(whole) if self._steps is None else self._steps):
            return False
        self._probe.put_back(run.optimizers)
        run.timeline.start = self._decide(run, self._probe, whole)
        self._probe = None
        return True

    def _decide(self, run: TrainingRun, probe: Probe, whole: float) -> Start:
        start = Start(probe.steps, {}, {}, [])
        free = [number for number, layer in enumerate(run.layers) if not layer.pinned]
        if probe.steps < LEAST or not free:
            return start
        gradients, weights = probe.gradients()[:, free], probe.weights()[free]
        names = [run.layers[number].name for number in free]
        sizes = [run.layers[number].size for number in free]
        sizes.append(sum(layer.size for layer in run.layers) - sum(sizes))
        full = run.timeline.states[0].flops
        costs = [
            flops_when_frozen(run.timeline.costs, full, names[: depth + 1]).total / full.total
            for depth in range(len(names))
        ]
        steps = min(whole, MOST / SHARE)  # of a run without a known length only this much is known
        inputs = start_inputs(gradients, weights, torch.tensor(costs), torch.tensor(sizes), steps)
        sure = self._predictor(inputs).sigmoid().tolist()
        start.profile = dict(zip(names, relative_gradients(gradients, weights).tolist(), strict=True))
        start.sure = dict(zip(names, sure, strict=True))
        start.held = names[: choose_front(costs, sure, self._threshold, self._save)]
        return start

    def state_dict(self) -> dict[str, Any]:
        """What a resumed probe needs."""
        return {} if self._probe is None else self._probe.state_dict()

    def load_state_dict(self, state: dict[str, Any], run: TrainingRun) -> None:
        """Go on."""
        self._probe = None
        if state:
            self.begin(run)
            assert self._probe is not None
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
