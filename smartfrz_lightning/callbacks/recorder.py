"""HistoryRecorder: writes what the predictor is trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.history.recording import Recording
from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.history.window import snapshot_spacing
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.similarity.reference import load_reference
from smartfrz_lightning.similarity.reference_probe import ReferenceProbe
from smartfrz_lightning.version import __version__


class HistoryRecorder(FreezingCallback):
    """Record a second training of a model against the finished first one (paper, section 3.4).

    It takes weight snapshots all through the run and, at every check, the CKA of each layer's output to that of the
    reference, on one fixed probe: the first validation examples, which the Trainer's sanity check runs before training
    begins. Both models are probed in eval mode; CKA is the unbiased estimate. The training itself is not changed. The
    file is written when the run ends; an interrupted run leaves none.

    Args:
        reference: Checkpoint of the finished run of the same config.
        path: Where the recording goes; ``recording.safetensors`` in the run's log folder by default.
        network: Name of the architecture, by which networks are held out later; by default its class name.
        checks_per_epoch: How often CKA is measured. Without epochs a tenth of the run counts as one.
        sample_size: Sampled weights a layer.
        probe_examples: Validation examples on which CKA is measured, at least.
        exclude: Patterns of layers to leave out.

    Raises:
        FileNotFoundError: There is no such reference.
        ValueError: The reference is of another architecture or cannot be read, or an argument is below 1.
        MisconfigurationException: On ``fit``: there are several processes, the run had begun before, or the sanity
            check has too few examples.
    """

    def __init__(
        self,
        reference: str,
        path: str | None = None,
        network: str | None = None,
        checks_per_epoch: int = 8,
        sample_size: int = 1024,
        probe_examples: int = 512,
        exclude: Sequence[str] | str = (),
    ) -> None:
        super().__init__(report=False, exclude=exclude)
        counts = {"checks_per_epoch": checks_per_epoch, "sample_size": sample_size, "probe_examples": probe_examples}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.reference, self.path, self.network = reference, path, network
        self.checks_per_epoch, self.sample_size, self.probe_examples = checks_per_epoch, sample_size, probe_examples

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.world_size > 1:
            raise MisconfigurationException("HistoryRecorder records one process: use Trainer(devices=1)")
        super().setup(trainer, pl_module, stage)

    def reset(self) -> None:
        self._probe: ReferenceProbe | None = None
        self._recorded: list[Layer] = []
        self._snapshots: list[Tensor] = []
        self._snapshot_steps: list[int] = []
        self._checks: list[dict[str, Any]] = []

    def prepare(self, run: TrainingRun) -> None:
        load_reference(self.reference, run.model)

    def start(self, run: TrainingRun) -> None:
        if self._probe is None:
            raise MisconfigurationException("HistoryRecorder measures CKA on a Trainer's sanity check: use a Trainer")
        if run.begun_before or run.global_steps:
            raise MisconfigurationException(
                "HistoryRecorder needs the whole run, and this one had begun before: record again from the start"
            )
        self._spacing = snapshot_spacing(run.batches_per_epoch, run.total_batches)
        epoch = run.batches_per_epoch if run.batches_per_epoch < float("inf") else run.total_batches / 10
        self._check_spacing = (
            max(1, round(epoch / self.checks_per_epoch)) if epoch < float("inf") else self._spacing * 3
        )

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._probe = ReferenceProbe(pl_module, self.probe_examples)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = 0 if self._probe is None else self._probe.examples
        if found < self.probe_examples:
            raise MisconfigurationException(
                f"probe_examples={self.probe_examples}: the model, called as a module, got {found} examples in the "
                f"sanity check. Give the Trainer a validation loader and more num_sanity_val_steps (now "
                f"{trainer.num_sanity_val_steps}), or fewer probe_examples"
            )
        super().on_train_start(trainer, pl_module)

    def layers_found(self, run: TrainingRun) -> None:
        if self._probe is not None and not self._recorded:
            self._recorded = [layer for layer in run.layers if layer.always_trains not in ("unused", "excluded")]
            self._sampler = WeightSampler(run.model, self._recorded, self.sample_size)
            self._probe.meet_reference(load_reference(self.reference, run.model), self._recorded)

    def step_done(self, run: TrainingRun) -> None:
        if run.passed(self._spacing):
            row = torch.empty(len(self._recorded), self.sample_size, device=next(run.model.parameters()).device)
            self._snapshots.append(self._sampler(row).cpu())
            self._snapshot_steps.append(run.steps)
        if self._probe is None or not run.passed(self._check_spacing):
            return
        cka = self._probe.cka(self._recorded)
        self._checks.append({"cka": cka, "check_step": run.steps, "check_epoch": run.epoch})

    def select(self, run: TrainingRun) -> list[str]:
        return []

    def end(self, run: TrainingRun) -> None:
        if self._probe is not None:
            self._probe.remove_hooks()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._checks or not self._snapshots:
            raise MisconfigurationException(
                f"the run ended after {trainer.global_step} steps, before the first check: nothing was recorded"
            )
        super().on_train_end(trainer, pl_module)
        assert self._probe is not None
        columns = {key: [check[key] for check in self._checks] for key in self._checks[0]}
        recording = Recording(
            snapshots=torch.stack(self._snapshots),
            snapshot_step=torch.tensor(self._snapshot_steps),
            **{key: torch.tensor(values) for key, values in columns.items()},
            network=self.network or self._probe.network,
            layers=[layer.name for layer in self._recorded],
            settings={
                "batches_per_epoch": trainer.num_training_batches,
                "snapshot_every_n_batches": self._spacing,
                "check_every_n_batches": self._check_spacing,
                "optimizer": type(trainer.optimizers[0]).__name__,
                "versions": {"torch": torch.__version__, "smartfrz_lightning": __version__},
            },
        )
        path = Path(self.path or Path(trainer.log_dir or trainer.default_root_dir) / "recording.safetensors")
        recording.save(path)
        print(f"recording of {len(self._snapshots)} snapshots and {len(self._checks)} checks: {path}")
