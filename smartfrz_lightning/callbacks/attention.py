"""AttentionFreezeCallback: the paper's method by itself."""

from typing import Any

from torch import Tensor

from smartfrz_lightning.callbacks.windowed import WindowedFreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.predictor.network import AttentionPredictor
from smartfrz_lightning.stages.start import check_shares


class AttentionFreezeCallback(WindowedFreezingCallback):
    """Freeze layers as an attention predictor says (SmartFRZ, Li et al., ICLR 2023).

    Small snapshots of every active layer's weights are kept while training goes on. At each check a pretrained
    attention predictor looks at every layer's window and gives its confidence that the layer is ready; those above
    ``threshold`` freeze.

    - **When**: to compare with the paper.
    - **When not**: to save: the shipped predictor follows the learning rate more than the layers.
    - **Cost**: 1,024 weights a layer and snapshot in memory; a small network at each check.
    - **Source**: Li et al. 2023, "SmartFRZ: An Efficient Training Framework using Attention-Based Layer Freezing".

    Args:
        predictor: Safetensors file of a predictor; the shipped one by default.
        threshold: Confidence from which a layer freezes, between 0 and 1; the paper takes the more likely decision.
        front_only: Freeze a layer only once all before it are frozen; ``False`` is the paper's rule.
        window: Snapshots kept a layer; by default as many as the predictor was trained on.
        kwargs: Further arguments of ``WindowedFreezingCallback``, but for ``sample_size``: that of the predictor.

    Raises:
        FileNotFoundError: There is no such predictor file.
        ValueError: An argument is out of range, or the predictor file cannot be read.
    """

    def __init__(
        self,
        predictor: str | None = None,
        threshold: float = 0.5,
        front_only: bool = False,
        window: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_shares(threshold=threshold)
        self._network = AttentionPredictor.load(predictor)
        window = self._network.window if window is None else window
        super().__init__(front_only=front_only, window=window, sample_size=self._network.sample_size, **kwargs)
        self.threshold = threshold

    def start(self, run: TrainingRun) -> None:
        super().start(run)
        self._network.to(next(run.model.parameters()).device)

    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        confidences = self._network.confidence(windows).tolist()
        return {name: value for name, value in zip(names, confidences, strict=True) if value > self.threshold}
