"""SmartFreezeCallback: freeze layers when the attention predictor says so (the paper's method)."""

from collections.abc import Collection
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from smartfrz_lightning.callbacks.windowed import WindowedFreezingCallback
from smartfrz_lightning.engine.method import Decision
from smartfrz_lightning.engine.probe import Probe
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.predictor.inference import FreezeConfidence
from smartfrz_lightning.predictor.slope import relative_gradients, slope
from smartfrz_lightning.predictor.weights import load_predictor
from smartfrz_lightning.report.timeline import Start

# A probe's length: a share of the run, and the most.
_SHARE, _MOST = 0.02, 30
_GENTLE = 0.8
"""Slope below which the front is held, and ..."""
_HELD = 0.6
"""... the share of the layers that is."""


class SmartFreezeCallback(WindowedFreezingCallback):
    """SmartFRZ (Li et al., ICLR 2023): attention-guided layer freezing.

    Small snapshots of every active layer's weights are kept while training goes on. At each check a pretrained
    attention predictor looks at every layer's window and gives its confidence that the layer is ready; those above
    ``threshold`` freeze, each for itself or from the front on.

    Args:
        predictor: Safetensors file of a predictor; the shipped one by default.
        threshold: Confidence above which a layer freezes, between 0 and 1. The paper takes the more likely of the two
            decisions. The shipped predictor was trained with both labels weighted alike, though 7.6 % of its windows
            say "freeze", so 0.5 is far less than an even chance; that is at 0.92.
        window: Snapshots kept a layer; by default as many as the predictor was trained on.
        sample_size: Sampled weights a layer; that of the predictor, which the file says.
        start: ``"none"``, as in the paper; or ``"probe"``: in its first steps the head alone moves, while the gradients
            of all layers are watched; if the front wants to move clearly less than the back, its first layers are held
            from the start. The head is then put back, and training begins, without the steps of the probe.
        probe_steps: Steps of the probe; by default 2 % of the run, but at most 30. Runs of less than 100 steps are not
            probed.
        kwargs: Arguments of :class:`~smartfrz_lightning.WindowedFreezingCallback`: the history and when to look at it.

    Raises:
        FileNotFoundError: There is no such predictor file.
        ValueError: An argument is out of range, both intervals are given, or the predictor file cannot be read or is of
            another sample size.

    Example:
        >>> from lightning import Trainer
        >>> from smartfrz_lightning import SmartFreezeCallback
        >>> trainer = Trainer(max_epochs=10, callbacks=[SmartFreezeCallback(threshold=0.7)], logger=False)
    """

    def __init__(
        self,
        predictor: str | None = None,
        threshold: float = 0.9,
        window: int | None = None,
        sample_size: int | None = None,
        start: Literal["none", "probe"] = "none",
        probe_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        network = load_predictor(predictor, sample_size)
        super().__init__(window=network.window if window is None else window, sample_size=network.sample_size, **kwargs)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold}: must lie between 0 and 1; 0.9 is the default")
        if start not in ("none", "probe"):
            raise ValueError(f"start={start!r}: must be 'none' or 'probe'")
        if probe_steps is not None and probe_steps < 2:
            raise ValueError(f"probe_steps={probe_steps}: must be at least 2, to tell drift from noise")
        self.start_with, self.probe_steps = start, probe_steps
        self.predictor = predictor
        self.threshold = threshold
        self._network = network
        if self.window != network.window:
            rank_zero_warn(f"window={self.window}: the predictor was trained on windows of {network.window} snapshots")

    def reset(self) -> None:
        super().reset()
        self._probe: Probe | None = None
        self._probed = self._decides = False  # a probe has just ended; what it says is to be done

    def start(self, run: TrainingRun) -> None:
        super().start(run)
        if self.start_with == "probe" and self._probe is None and not run.timeline.steps and not run.layers:
            if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in run.optimizers):
                rank_zero_warn("start='probe': LBFGS asks for gradients many times a step; nothing is probed or held")
            else:
                self._probe = Probe(run.model, self.sample_size, self.seed)
        self._confidence = FreezeConfidence(self._network.to(next(run.model.parameters()).device))

    def changed(self, run: TrainingRun, frozen: Collection[str], thawed: Collection[str]) -> None:
        super().changed(run, frozen, thawed)
        free, done = sum(not layer.pinned for layer in run.layers), run.progress or 0.0
        if len(frozen) > free / 2 and 0 < done < 0.5:
            rank_zero_warn(
                f"SmartFreezeCallback froze {len(frozen)} of {free} layers at once, after {done:.0%} of the run. The "
                "predictor's confidence is not calibrated on kinds of networks and training that it has not seen: if "
                f"the model ends worse than without freezing, raise threshold={self.threshold}"
            )

    # --- the probe

    def first_gradients(self, run: TrainingRun, optimizer: Optimizer) -> None:
        if self._probe is not None:
            self._probe.take_gradients(optimizer)

    def layers_found(self, run: TrainingRun) -> None:
        super().layers_found(run)
        if self._probe is not None:
            self._probe.watch(run.layers)

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        if self._probe is not None:
            self._probe.take_gradients(optimizer)

    def step_done(self, run: TrainingRun) -> None:
        if self._probe is None:
            super().step_done(run)
            return
        self._probe.step_done()
        if run.timeline.steps >= self._probe_length(run):
            self._probe.put_back(run.optimizers)
            self._look_at_probe(run)
            self._probe, self._probed = None, True

    def _probe_length(self, run: TrainingRun) -> float:
        if self.probe_steps is not None:
            return self.probe_steps
        if not run.progress:
            return _MOST
        whole = run.timeline.steps / run.progress
        return min(_MOST, int(_SHARE * whole + 1e-6))

    def _look_at_probe(self, run: TrainingRun) -> None:
        assert self._probe is not None
        start = Start(self._probe.steps, {}, float("inf"), [])
        run.timeline.start = start
        free = [number for number, layer in enumerate(run.layers) if not layer.pinned]
        if self._probe.steps < 2 or len(free) < 2:
            return
        relative = relative_gradients(self._probe.gradients(), self._probe.weights())[free]
        names = [run.layers[number].name for number in free]
        start.profile = dict(zip(names, relative.tolist(), strict=True))
        start.slope = slope(relative)
        if start.slope < _GENTLE:
            start.held = names[: round(_HELD * len(names))]

    def check_due(self, run: TrainingRun) -> bool:
        if self._probe is not None:
            return False
        if self._probed:
            self._probed, self._decides = False, True
            return True
        return super().check_due(run)

    def select(self, run: TrainingRun) -> Decision | dict[str, float]:
        if not self._decides:
            return super().select(run)
        self._decides = False
        assert run.timeline.start is not None
        return Decision(run.timeline.start.held, held=True)

    def method_state(self) -> dict[str, Any]:
        probe = {"probe": self._probe.state_dict()} if self._probe is not None else {}
        return {**super().method_state(), **probe, "decides": self._probed or self._decides}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        super().load_method_state(state, run)
        self._probed = state.get("decides", False)
        if "probe" in state:
            self._probe = Probe(run.model, self.sample_size, self.seed)
            self._probe.load_state_dict(state["probe"])
            self._probe.watch(run.layers)

    # --- windows

    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        confidences = self._confidence(windows, names, steps).tolist()
        return {name: value for name, value in zip(names, confidences, strict=True) if value > self.threshold}
