"""SimilarityFreezeCallback: the oracle, freezing where the CKA to a finished reference has stabilised."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.callbacks.run_length import steps_per_epoch
from smartfrz_lightning.layers.layer import Layer, connected
from smartfrz_lightning.similarity.reference import load_reference
from smartfrz_lightning.similarity.reference_probe import ReferenceProbe


class SimilarityFreezeCallback(FreezingCallback):
    """Similarity-guided freezing (SmartFRZ paper, section 3.4 and Table 1): what the predictor is trained to foresee.

    Several times an epoch the CKA of each layer's output to that of a finished reference is measured on the inputs of
    the first training batch. A layer freezes at the end of an epoch in which the range (largest minus smallest) of its
    CKA stayed below ``epsilon``. Needs a finished run of the same model, so it is an upper bound to compare with, not
    a way to save anything.

    Args:
        reference: Checkpoint or safetensors file of the finished model.
        epsilon: Largest range of CKA over an epoch that counts as stable.
        measurements_per_epoch: How often an epoch CKA is measured.
        front_only: Freeze a layer only once all before it have.
        exclude: Patterns of what always trains.

    Raises:
        MisconfigurationException: An argument is out of range; on ``fit``: the data loader has no length.
        FileNotFoundError: On ``fit``: there is no such reference.
        ValueError: On ``fit``: the reference cannot be read or is of another architecture.

    Example:
        >>> from smartfrz_lightning import SimilarityFreezeCallback
        >>> SimilarityFreezeCallback(reference="runs/full/last.ckpt").epsilon
        0.01
    """

    works_sharded = False

    def __init__(
        self,
        reference: str,
        epsilon: float = 0.01,
        measurements_per_epoch: int = 8,
        front_only: bool = False,
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__(exclude=exclude)
        if not 0 < epsilon < 1:
            raise MisconfigurationException(f"epsilon={epsilon}: must lie between 0 and 1; CKA itself does")
        if measurements_per_epoch < 2:
            raise MisconfigurationException(
                f"measurements_per_epoch={measurements_per_epoch}: a range needs at least 2 measurements"
            )
        self.reference = reference
        self.epsilon = epsilon
        self.measurements_per_epoch = measurements_per_epoch
        self.front_only = front_only

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            load_reference(self.reference, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        per_epoch = steps_per_epoch(trainer)
        if per_epoch == float("inf"):
            raise MisconfigurationException("SimilarityFreezeCallback works by epochs: the data loader needs a length")
        self._spacing = max(1, round(per_epoch / self.measurements_per_epoch))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.layers and self._probe is None and trainer.is_global_zero:
            self._probe = ReferenceProbe(pl_module)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_layers_found(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._probe.meet_reference(load_reference(self.reference, pl_module), self.active)

    def on_optimizer_step_done(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.active and trainer.is_global_zero and self.timeline.steps % self._spacing == 0:
            for layer, cka in zip(self.active, self._probe.cka(self.active), strict=True):
                self._cka.setdefault(layer.name, []).append(cka)

    def select(self, trainer: Trainer, pl_module: LightningModule, active: list[Layer]) -> list[str]:
        ready = stable_layers({layer.name: self._cka.get(layer.name, []) for layer in active}, self.epsilon)
        self._cka.clear()
        return connected(self.layers, self.frozen, ready) if self.front_only else ready

    def method_state(self) -> dict[str, Any]:
        return {"cka": dict(self._cka), "probe": self._probe.state_dict()} if self._probe else {}

    def load_method_state(self, state: dict[str, Any], pl_module: LightningModule) -> None:
        if state:
            self._cka = dict(state["cka"])
            self._probe = ReferenceProbe(pl_module)
            self._probe.load_state_dict(state["probe"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if self._probe is not None:
            self._probe.remove_hooks()

    def _reset(self) -> None:
        super()._reset()
        self._probe: ReferenceProbe | None = None
        self._cka: dict[str, list[float]] = {}


def stable_layers(cka: dict[str, list[float]], epsilon: float) -> list[str]:
    """Layers whose CKA was measured at least twice and stayed within a range below ``epsilon``.

    Example:
        >>> from smartfrz_lightning.callbacks.similarity import stable_layers
        >>> stable_layers({"a": [0.90, 0.905], "b": [0.5, 0.7], "c": [0.9]}, 0.01)
        ['a']
    """
    return [name for name, values in cka.items() if len(values) > 1 and max(values) - min(values) < epsilon]
