"""SmartFreezeCallback: freeze layers when the attention predictor says so (the paper's method)."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.callbacks.run_length import steps_per_epoch, steps_total
from smartfrz_lightning.history import WeightHistory, snapshot_spacing
from smartfrz_lightning.layers import Layer
from smartfrz_lightning.predictor.inference import FreezeConfidence
from smartfrz_lightning.predictor.weights import load_predictor


class SmartFreezeCallback(FreezingCallback):
    """SmartFRZ (Li et al., ICLR 2023): attention-guided layer freezing.

    Small snapshots of every active layer's weights are kept while training goes on. At each check a pretrained
    attention predictor looks at every layer's window and gives its confidence that the layer is ready; those above
    ``threshold`` freeze, each for itself or from the front on.

    Args:
        predictor: Safetensors file of a predictor; the shipped one by default.
        threshold: Confidence above which a layer freezes, between 0 and 1. The paper takes the more likely of the two
            decisions, 0.5.
        front_only: Freeze a layer only once all layers before it have: that saves activation gradients and memory too.
            ``False`` is the paper's rule, any layer in any order.
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
        >>> trainer = Trainer(max_epochs=10, callbacks=[SmartFreezeCallback(threshold=0.9)], logger=False)
    """

    def __init__(
        self,
        predictor: str | None = None,
        threshold: float = 0.5,
        front_only: bool = False,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        snapshot_every_n_steps: int | None = None,
        window: int = 30,
        sample_size: int = 1024,
        seed: int = 0,
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__(every_n_epochs, every_n_train_steps, exclude)
        if not 0 < threshold < 1:
            raise MisconfigurationException(f"threshold={threshold}: must lie between 0 and 1; the paper takes 0.5")
        for name, value in (
            ("window", window),
            ("sample_size", sample_size),
            ("snapshot_every_n_steps", snapshot_every_n_steps),
        ):
            if value is not None and value < 1:
                raise MisconfigurationException(f"{name}={value}: must be at least 1")
        self.predictor = predictor
        self.threshold = threshold
        self.front_only = front_only
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self.window = window
        self.sample_size = sample_size
        self.seed = seed
        self._network = load_predictor(predictor, sample_size)
        self._history: WeightHistory | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._confidence = FreezeConfidence(self._network.to(pl_module.device))
        self._spacing = self.snapshot_every_n_steps or snapshot_spacing(
            steps_per_epoch(trainer), steps_total(trainer), self.window
        )
        if self.layers and self._history is None:
            self._history = self._new_history(pl_module)

    def on_layers_found(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._history = self._new_history(pl_module)

    def on_optimizer_step_done(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.timeline.steps % self._spacing == 0:
            self._history.record(self.timeline.steps)

    def select(self, trainer: Trainer, pl_module: LightningModule, active: list[Layer]) -> dict[str, float]:
        if len(self._history.steps) < 2:  # one snapshot shows no movement
            return {}
        confidences = self._confidence(self._history.windows(), self._history.names, self._history.steps).tolist()
        known = dict(zip(self._history.names, confidences, strict=True))
        ready = {name: confidence for name, confidence in known.items() if confidence > self.threshold}
        return _connected(self.layers, set(self.frozen), ready) if self.front_only else ready

    def on_freeze(self, names: list[str]) -> None:
        self._history.drop(names)

    def method_state(self) -> dict[str, Any]:
        return {"history": self._history.state_dict()} if self._history else {}

    def load_method_state(self, state: dict[str, Any], pl_module: LightningModule) -> None:
        self._history = self._new_history(pl_module)
        if "history" in state:
            self._history.load_state_dict(state["history"])

    def _new_history(self, pl_module: LightningModule) -> WeightHistory:
        return WeightHistory(pl_module, self.active, self.window, self.sample_size, self.seed)

    def _reset(self) -> None:
        super()._reset()
        self._history = None


def _connected(layers: list[Layer], frozen: set[str], ready: dict[str, float]) -> dict[str, float]:
    """Those ready layers before which every layer is frozen or ready."""
    chosen: dict[str, float] = {}
    for layer in layers:
        if layer.name in ready:
            chosen[layer.name] = ready[layer.name]
        elif layer.name not in frozen:
            break
    return chosen
