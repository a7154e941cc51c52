"""AttentionFreezeCallback: the paper's method by itself."""

from collections.abc import Sequence

from torch import Tensor

from smartfrz_lightning.callbacks.windowed import WindowedFreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.predictor.inference import freeze_confidence
from smartfrz_lightning.predictor.weights import load_predictor
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
        snapshot_every_n_steps: Optimizer steps between snapshots; by default a window covers about 1.5 epochs, in a
            short run half of the run.
        window: Snapshots kept a layer; by default as many as the predictor was trained on.
        seed: Fixes which weights are sampled.
        every_n_epochs: Ask at the end of every n-th epoch; 1 if neither interval is given, or every tenth of a run that
            has a single epoch or none.
        every_n_train_steps: Ask every n optimizer steps instead.
        exclude: Shell-style patterns of modules, layers or parameters that always train.
        report: Whether to print a table at the end of a fit and to leave it as CSV and picture in the folder of the
            Trainer's logger; or another folder for the files.

    Raises:
        FileNotFoundError: There is no such predictor file.
        ValueError: An argument is out of range, or the predictor file cannot be read.
    """

    def __init__(
        self,
        predictor: str | None = None,
        threshold: float = 0.5,
        front_only: bool = False,
        snapshot_every_n_steps: int | None = None,
        window: int | None = None,
        seed: int = 0,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        exclude: Sequence[str] | str = (),
        report: bool | str = True,
    ) -> None:
        check_shares(threshold=threshold)
        self._network = load_predictor(predictor)
        super().__init__(
            front_only=front_only,
            snapshot_every_n_steps=snapshot_every_n_steps,
            window=self._network.window if window is None else window,
            sample_size=self._network.sample_size,
            seed=seed,
            report=report,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            exclude=exclude,
        )
        self.threshold = threshold

    def start(self, run: TrainingRun) -> None:
        super().start(run)
        self._network.to(next(run.model.parameters()).device)

    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        confidences = freeze_confidence(self._network, windows).tolist()
        return {name: value for name, value in zip(names, confidences, strict=True) if value > self.threshold}
