"""SmartFreezeCallback: freeze layers when the attention predictor says so (the paper's method)."""

from collections.abc import Collection
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from smartfrz_lightning.callbacks.windowed import WindowedFreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.predictor.inference import FreezeConfidence
from smartfrz_lightning.predictor.weights import load_predictor


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
        **kwargs: Any,
    ) -> None:
        network = load_predictor(predictor, sample_size)
        super().__init__(window=network.window if window is None else window, sample_size=network.sample_size, **kwargs)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold}: must lie between 0 and 1; 0.9 is the default")
        self.predictor = predictor
        self.threshold = threshold
        self._network = network
        if self.window != network.window:
            rank_zero_warn(f"window={self.window}: the predictor was trained on windows of {network.window} snapshots")

    def start(self, run: TrainingRun) -> None:
        super().start(run)
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

    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        confidences = self._confidence(windows, names, steps).tolist()
        return {name: value for name, value in zip(names, confidences, strict=True) if value > self.threshold}
