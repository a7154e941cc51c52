"""AttentionStage: the paper's attention predictor, asked which layers may freeze."""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.predictor.inference import freeze_confidence
from smartfrz_lightning.predictor.weights import load_predictor
from smartfrz_lightning.stages.rates import RateWatch
from smartfrz_lightning.stages.start import check_shares
from smartfrz_lightning.stages.windowed import WindowedStage

CHECKS = 20
"""Checks in a run of fewer epochs."""


class AttentionStage(WindowedStage):
    """Freeze layers whose weight history an attention predictor takes for finished (Li et al. 2023, SmartFRZ).

    Small snapshots of every active layer's weights are kept while training goes on. At the end of each epoch, or every
    twentieth of a run of fewer epochs, the predictor gives its confidence that a layer is ready; layers above
    ``threshold`` freeze. Nothing freezes while learning rates rise, or before its window is full.

    Args:
        predictor: Safetensors file of a predictor; the shipped one by default.
        threshold: Confidence from which a layer freezes, between 0 and 1.
        front_only: Freeze a layer only once all before it are frozen; ``False`` is the paper's rule.
        snapshot_every_n_steps: Optimizer steps between snapshots; by default a window covers about 1.5 epochs, in a
            short run half of the run.
        window: Snapshots kept a layer; as many as the predictor was trained on by default.
        seed: Fixes which weights are sampled.

    Raises:
        FileNotFoundError: There is no such predictor file.
        ValueError: An argument is out of range, or the predictor file cannot be read.
    """

    def __init__(
        self,
        predictor: str | None = None,
        threshold: float = 0.98,
        front_only: bool = True,
        snapshot_every_n_steps: int | None = None,
        window: int | None = None,
        seed: int = 0,
    ) -> None:
        check_shares(threshold=threshold)
        self._network = load_predictor(predictor)
        window = self._network.window if window is None else window
        super().__init__(front_only, snapshot_every_n_steps, window, self._network.sample_size, seed)
        self.threshold = threshold

    def reset(self) -> None:
        super().reset()
        self._rates = RateWatch()

    def start(self, run: TrainingRun) -> None:
        super().start(run)
        self._network.to(next(run.model.parameters()).device)

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        self._rates.note(run.optimizers)

    @property
    def reads_gradients(self) -> bool:
        return False  # the rates alone

    def check_due(self, run: TrainingRun) -> bool:
        if not _few_epochs(run) or self._rates.rising(run.optimizers):
            return False
        return run.passed(max(1.0, run.total_batches / CHECKS)) and run.batches < run.total_batches

    def epoch_check_due(self, run: TrainingRun, epoch: int) -> bool:
        return not _few_epochs(run) and not self._rates.rising(run.optimizers)

    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        if len(steps) < self.window:  # in a shorter one little has moved yet
            return {}
        confidences = freeze_confidence(self._network, windows).tolist()
        return {name: value for name, value in zip(names, confidences, strict=True) if value > self.threshold}

    def method_state(self) -> dict[str, Any]:
        return {**super().method_state(), "rates": self._rates.state_dict()}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        super().load_method_state(state, run)
        self._rates.load_state_dict(state["rates"])


def _few_epochs(run: TrainingRun) -> bool:
    return run.total_batches < math.inf and run.total_batches < CHECKS * run.batches_per_epoch
