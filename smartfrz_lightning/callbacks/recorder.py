"""HistoryRecorder: writes what the predictor is trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from smartfrz_lightning.callbacks.layer_callback import LayerCallback
from smartfrz_lightning.callbacks.run_length import steps_per_epoch, steps_total
from smartfrz_lightning.history.recording import Recording
from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.history.window import snapshot_spacing
from smartfrz_lightning.similarity.reference import load_reference
from smartfrz_lightning.similarity.reference_probe import ReferenceProbe
from smartfrz_lightning.version import __version__


class HistoryRecorder(LayerCallback):
    """Record a second training of a model against the finished first one (paper, section 3.4).

    It takes weight snapshots all through the run and, at every check, the CKA of each layer's output to that of the
    reference, on one fixed probe: the inputs of the first training batch. Both models are probed in eval mode. The
    training itself is not changed. The file is written when the run ends; an interrupted run leaves none.

    Args:
        reference: Checkpoint of the finished run of the same config.
        path: Where the recording goes; ``recording.safetensors`` in the run's log folder by default.
        network: Name of the architecture, by which networks are held out later; by default its class name.
        checks_per_epoch: How often CKA is measured. Without epochs a tenth of the run counts as one.
        snapshot_every_n_steps: Optimizer steps between snapshots; by default so many that 30 cover 1.5 epochs.
        sample_size: Sampled weights a layer.
        seed: Fixes which weights are sampled.
        exclude: Patterns of layers to leave out.

    Raises:
        FileNotFoundError: There is no such reference.
        ValueError: The reference is of another architecture or cannot be read, or an argument is below 1.

    Example:
        >>> from smartfrz_lightning import HistoryRecorder
        >>> HistoryRecorder(reference="runs/first/reference.ckpt", network="resnet20").checks_per_epoch
        8
    """

    def __init__(
        self,
        reference: str,
        path: str | None = None,
        network: str | None = None,
        checks_per_epoch: int = 8,
        snapshot_every_n_steps: int | None = None,
        sample_size: int = 1024,
        seed: int = 0,
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__(exclude)
        for name, value in (
            ("checks_per_epoch", checks_per_epoch),
            ("snapshot_every_n_steps", snapshot_every_n_steps),
            ("sample_size", sample_size),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.reference = reference
        self.path = path
        self.network = network
        self.checks_per_epoch = checks_per_epoch
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self.sample_size = sample_size
        self.seed = seed
        self._probe: ReferenceProbe | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            load_reference(self.reference, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if trainer.world_size > 1:
            raise MisconfigurationException("HistoryRecorder records one process: use Trainer(devices=1)")
        self.layers = []
        self._snapshots: list[Tensor] = []
        self._checks: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._step = 0
        self._last_global_step = trainer.global_step
        self._probe = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            raise MisconfigurationException(
                f"HistoryRecorder needs the whole run, and this one resumes at step {trainer.global_step}: "
                "record again from the start"
            )
        per_epoch, total = steps_per_epoch(trainer), steps_total(trainer)
        self._spacing = self.snapshot_every_n_steps or snapshot_spacing(per_epoch, total)
        epoch = per_epoch if per_epoch < float("inf") else total / 10
        self._check_spacing = (
            max(1, round(epoch / self.checks_per_epoch)) if epoch < float("inf") else self._spacing * 3
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._probe is None:
            self._probe = ReferenceProbe(pl_module)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_layers_found(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.layers = [layer for layer in self.layers if layer.pinned not in ("unused", "excluded")]
        self._sampler = WeightSampler(pl_module, self.layers, self.sample_size, self.seed)
        self._probe.meet_reference(load_reference(self.reference, pl_module), self.layers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._losses.append(loss.detach())
        if not self.layers or trainer.global_step == self._last_global_step:
            return
        self._last_global_step = trainer.global_step
        self._step += 1
        if self._step % self._spacing == 0:
            row = torch.empty(len(self.layers), self.sample_size, device=pl_module.device)
            self._snapshots.append(self._sampler(row).cpu())
        if self._step % self._check_spacing == 0:
            self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        per_epoch, total = steps_per_epoch(trainer), steps_total(trainer)
        epoch = self._step / per_epoch if per_epoch < float("inf") else float(trainer.current_epoch)
        self._checks.append(
            {
                "cka": self._probe.cka(self.layers),
                "check_step": self._step,
                "check_epoch": epoch,
                "progress": self._step / total if total < float("inf") else float("nan"),
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
                "train_loss": float(torch.stack(self._losses).mean()) if self._losses else float("nan"),
            }
        )
        self._losses.clear()
        pl_module.log("record/cka", sum(self._checks[-1]["cka"]) / len(self.layers), prog_bar=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._checks or not self._snapshots:
            raise MisconfigurationException(
                f"the run ended after {self._step} steps, before the first check: nothing was recorded"
            )
        columns = {key: [check[key] for check in self._checks] for key in self._checks[0]}
        recording = Recording(
            snapshots=torch.stack(self._snapshots),
            snapshot_step=torch.arange(1, len(self._snapshots) + 1) * self._spacing,
            **{key: torch.tensor(values) for key, values in columns.items()},
            network=self.network or self._probe.network,
            layers=[layer.name for layer in self.layers],
            sizes=[layer.size for layer in self.layers],
            settings={
                "steps_per_epoch": steps_per_epoch(trainer),
                "snapshot_every_n_steps": self._spacing,
                "check_every_n_steps": self._check_spacing,
                "sample_seed": self.seed,
                "optimizer": type(trainer.optimizers[0]).__name__,
                "versions": {"torch": torch.__version__, "smartfrz_lightning": __version__},
            },
        )
        path = Path(self.path or Path(trainer.log_dir or trainer.default_root_dir) / "recording.safetensors")
        recording.save(path)
        print(f"recording of {len(self._snapshots)} snapshots and {len(self._checks)} checks: {path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if self._probe is not None:
            self._probe.remove_hooks()
