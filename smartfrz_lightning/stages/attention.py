"""AttentionStage: the paper's attention predictor, asked which layers may freeze."""

import math

from torch import Tensor

from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.predictor.inference import freeze_confidence
from smartfrz_lightning.predictor.weights import load_predictor
from smartfrz_lightning.stages.start import check_shares
from smartfrz_lightning.stages.windowed import WindowedStage

CHECKS = 20
"""Checks in a run of fewer epochs."""


class AttentionStage(WindowedStage):
    """Freeze layers whose weight history an attention predictor takes for finished (Li et al. 2023, SmartFRZ).

    Small snapshots of every active layer's weights are kept while training goes on. At the end of each epoch, or every
    twentieth of a run of fewer epochs, the predictor gives its confidence that a layer is ready; layers above
    ``threshold`` freeze. Nothing freezes while learning rates rise.

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

    full_window = True
    """Whether nothing is judged before its window is full: in a shorter one little has moved yet."""

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

    def start(self, run: TrainingRun) -> None:
        super().start(run)
        self._network.to(next(run.model.parameters()).device)

    def check_due(self, run: TrainingRun) -> bool:
        if not _few_epochs(run) or run.rates_rise:
            return False
        return run.passed(max(1.0, run.total_batches / CHECKS)) and run.batches < run.total_batches

    def epoch_check_due(self, run: TrainingRun, epoch: int) -> bool:
        return not _few_epochs(run) and not run.rates_rise

    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        if self.full_window and len(steps) < self.window:
            return {}
        confidences = freeze_confidence(self._network, windows).tolist()
        return {name: value for name, value in zip(names, confidences, strict=True) if value > self.threshold}


def _few_epochs(run: TrainingRun) -> bool:
    return run.total_batches < math.inf and run.total_batches < CHECKS * run.batches_per_epoch
