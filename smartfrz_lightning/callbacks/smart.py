"""SmartFreezeCallback: freeze layers when the attention predictor says so (the paper's method)."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from smartfrz_lightning.callbacks.run_length import steps_total
from smartfrz_lightning.callbacks.windowed import WindowedFreezingCallback
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
        front_only: Freeze a layer only once all layers before it have: that saves activation gradients and memory too.
            ``False`` is the paper's rule, each layer for itself.
        every_n_epochs: Check at the end of every n-th epoch; 1 if neither interval is given.
        every_n_train_steps: Check every n optimizer steps instead.
        snapshot_every_n_steps: Optimizer steps between snapshots; by default so many that a window covers 1.5 epochs.
        window: Snapshots kept a layer.
        sample_size: Sampled weights a layer; that of the predictor.
        seed: Fixes which weights are sampled.
        exclude: Patterns of modules, layers or parameters that always train.

    Raises:
        MisconfigurationException: An argument is out of range, or both intervals are given.
        FileNotFoundError: There is no such predictor file.
        ValueError: The predictor file cannot be read, or is of another sample size.

    Example:
        >>> from lightning import Trainer
        >>> from smartfrz_lightning import SmartFreezeCallback
        >>> trainer = Trainer(max_epochs=10, callbacks=[SmartFreezeCallback(threshold=0.7)], logger=False)
    """

    def __init__(
        self,
        predictor: str | None = None,
        threshold: float = 0.9,
        front_only: bool = True,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        snapshot_every_n_steps: int | None = None,
        window: int = 30,
        sample_size: int = 1024,
        seed: int = 0,
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__(
            front_only, every_n_epochs, every_n_train_steps, snapshot_every_n_steps, window, sample_size, seed, exclude
        )
        if not 0 < threshold < 1:
            raise MisconfigurationException(f"threshold={threshold}: must lie between 0 and 1; 0.9 is the default")
        self.predictor = predictor
        self.threshold = threshold
        self._network = load_predictor(predictor, sample_size)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._confidence = FreezeConfidence(self._network.to(pl_module.device))
        self._length = steps_total(trainer)

    def on_freeze(self, names: list[str]) -> None:
        super().on_freeze(names)
        free, done = sum(not layer.pinned for layer in self.layers), self.steps_in_run / self._length
        if len(names) > free / 2 and 0 < done < 0.5:
            rank_zero_warn(
                f"SmartFreezeCallback froze {len(names)} of {free} layers at once, after {done:.0%} of the run. The "
                "predictor's confidence is not calibrated on kinds of networks and training that it has not seen: if "
                f"the model ends worse than without freezing, raise threshold={self.threshold}"
            )

    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        confidences = self._confidence(windows, names, steps).tolist()
        return {name: value for name, value in zip(names, confidences, strict=True) if value > self.threshold}
