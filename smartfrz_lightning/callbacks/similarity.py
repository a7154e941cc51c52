"""SimilarityFreezeCallback: the oracle, freezing where the CKA to a finished reference has stabilised."""

from typing import Any

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.similarity.reference import load_reference
from smartfrz_lightning.similarity.reference_probe import ReferenceProbe
from smartfrz_lightning.stages.start import check_shares

MEASUREMENTS = 8
"""Of CKA, an epoch."""


class SimilarityFreezeCallback(FreezingCallback):
    """Similarity-guided freezing (SmartFRZ paper, section 3.4 and Table 1): what the predictor is trained to foresee.

    Several times an epoch the CKA of each layer's output to that of a finished reference is measured on the inputs of
    the first training batch, by the unbiased estimate. A layer freezes at the end of an epoch in which the range
    (largest minus smallest) of its CKA stayed below ``epsilon``. Needs a finished run of the same model, so it is an
    upper bound to compare with, not a way to save anything.

    - **When**: to see what similarity-guided freezing could reach at best.
    - **When not**: to save anything: it needs the finished model.
    - **Cost**: a forward pass of one batch at each measurement, and CKA of each layer.
    - **Source**: Li et al. 2023, "SmartFRZ", section 3.4.

    Args:
        reference: Checkpoint or safetensors file of the finished model.
        epsilon: Largest range of CKA over an epoch that counts as stable.
        kwargs: Arguments of ``FreezingCallback``, such as ``exclude``.

    Raises:
        FileNotFoundError: On ``fit``: there is no such reference.
        ValueError: An argument is out of range; on ``fit``: the data loader has no length, or the reference cannot be
            read or is of another architecture.
    """

    works_sharded = False

    def __init__(self, reference: str, epsilon: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_shares(epsilon=epsilon)
        self.reference = reference
        self.epsilon = epsilon

    def reset(self) -> None:
        self._probe: ReferenceProbe | None = None
        self._cka: dict[str, list[float]] = {}

    def prepare(self, run: TrainingRun) -> None:
        load_reference(self.reference, run.model)

    def start(self, run: TrainingRun) -> None:
        if run.batches_per_epoch == float("inf"):
            raise ValueError("SimilarityFreezeCallback works by epochs: the data loader needs a length")

    def before_batch(self, run: TrainingRun) -> None:
        if not run.layers and self._probe is None and run.is_first_process:
            self._probe = ReferenceProbe(run.model)

    def layers_found(self, run: TrainingRun) -> None:
        if self._probe is not None and not self._probe.reference:
            self._probe.meet_reference(load_reference(self.reference, run.model), run.active)

    def step_done(self, run: TrainingRun) -> None:
        spacing = max(1, round(run.batches_per_epoch / MEASUREMENTS))
        if self._probe is not None and run.passed(spacing) and (active := run.active):
            for layer, cka in zip(active, self._probe.cka(active), strict=True):
                self._cka.setdefault(layer.name, []).append(cka)

    def select(self, run: TrainingRun) -> list[str]:
        measured = {layer.name: self._cka.get(layer.name, []) for layer in run.active}
        ready = [n for n, cka in measured.items() if len(cka) > 1 and max(cka) - min(cka) < self.epsilon]
        self._cka.clear()
        return ready

    def method_state(self) -> dict[str, Any]:
        if self._probe is None or not self._probe.reference:
            return {}
        return {"cka": dict(self._cka), "probe": self._probe.state_dict()}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        if state:
            self._cka = dict(state["cka"])
            self._probe = ReferenceProbe(run.model)
            self._probe.load_state_dict(state["probe"])

    def end(self, run: TrainingRun) -> None:
        if self._probe is not None:
            self._probe.remove_hooks()
