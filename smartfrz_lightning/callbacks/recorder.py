"""HistoryRecorder: writes what the predictor is trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from smartfrz_lightning.callbacks.run_position import position, total_batches
from smartfrz_lightning.engine.finding import check_patterns
from smartfrz_lightning.engine.observer import Observer
from smartfrz_lightning.history.recording import Recording
from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.history.window import snapshot_spacing
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.similarity.reference import load_reference
from smartfrz_lightning.similarity.reference_probe import ReferenceProbe
from smartfrz_lightning.version import __version__


class HistoryRecorder(Callback):
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

    Examples:
        >>> from smartfrz_lightning import HistoryRecorder
        >>> HistoryRecorder(reference="runs/first/reference.ckpt", network="resnet20").checks_per_epoch
        8
    """

    watches_layers = True

    def __init__(
        self,
        reference: str,
        path: str | None = None,
        network: str | None = None,
        checks_per_epoch: int = 8,
        snapshot_every_n_steps: int | None = None,
        sample_size: int = 1024,
        seed: int = 0,
        exclude: Sequence[str] | str = (),
    ) -> None:
        super().__init__()
        for name, value in (
            ("checks_per_epoch", checks_per_epoch),
            ("snapshot_every_n_steps", snapshot_every_n_steps),
            ("sample_size", sample_size),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.reference = reference
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        self.path = path
        self.network = network
        self.checks_per_epoch = checks_per_epoch
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self.sample_size = sample_size
        self.seed = seed
        self._observer: Observer | None = None  # while a fit is recorded
        self._probe: ReferenceProbe | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.world_size > 1:
            raise MisconfigurationException("HistoryRecorder records one process: use Trainer(devices=1)")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        load_reference(self.reference, pl_module)
        check_patterns(self.exclude, pl_module)
        self._observer = Observer(pl_module, self.exclude)
        self._layers: list[Layer] = []
        self._snapshots: list[Tensor] = []
        self._snapshot_steps: list[int] = []
        self._checks: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._step = self._batches = 0
        self._last_global_step = trainer.global_step
        self._probe = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            raise MisconfigurationException(
                f"HistoryRecorder needs the whole run, and this one resumes at step {trainer.global_step}: "
                "record again from the start"
            )
        per_epoch, total = trainer.num_training_batches, total_batches(trainer)
        self._spacing = snapshot_spacing(per_epoch, total)
        epoch = per_epoch if per_epoch < float("inf") else total / 10
        self._check_spacing = (
            max(1, round(epoch / self.checks_per_epoch)) if epoch < float("inf") else self._spacing * 3
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self._observer is not None
        if self._probe is None:
            self._probe = ReferenceProbe(pl_module)
        self._observer.before_batch(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        assert self._observer is not None
        self._observer.before_backward(loss, only=pl_module.automatic_optimization)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._observer is not None and self._probe is not None
        stepped = trainer.global_step != self._last_global_step
        self._last_global_step = trainer.global_step
        found = self._observer.find()
        self._observer.after_batch()
        if found:
            self._layers = [
                layer for layer in self._observer.finder.layers if layer.always_trains not in ("unused", "excluded")
            ]
            self._sampler = WeightSampler(pl_module, self._layers, self.sample_size, self.seed)
            self._probe.meet_reference(load_reference(self.reference, pl_module), self._layers)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._losses.append(loss.detach())
        if not self._layers or not stepped:
            return
        before, (self._batches, _, _) = self._batches, position(trainer)
        self._step += 1
        every = self.snapshot_every_n_steps
        if self._batches // self._spacing > before // self._spacing if every is None else self._step % every == 0:
            row = torch.empty(len(self._layers), self.sample_size, device=pl_module.device)
            self._snapshots.append(self._sampler(row).cpu())
            self._snapshot_steps.append(self._step)
        if self._batches // self._check_spacing > before // self._check_spacing:
            self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._probe is not None
        _, epoch, progress = position(trainer)
        self._checks.append(
            {
                "cka": self._probe.cka(self._layers),
                "check_step": self._step,
                "check_epoch": epoch,
                "progress": float("nan") if progress is None else progress,
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
                "train_loss": float(torch.stack(self._losses).mean()) if self._losses else float("nan"),
            }
        )
        self._losses.clear()
        pl_module.log("record/cka", sum(self._checks[-1]["cka"]) / len(self._layers), prog_bar=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._checks or not self._snapshots:
            raise MisconfigurationException(
                f"the run ended after {self._step} steps, before the first check: nothing was recorded"
            )
        assert self._probe is not None
        columns = {key: [check[key] for check in self._checks] for key in self._checks[0]}
        recording = Recording(
            snapshots=torch.stack(self._snapshots),
            snapshot_step=torch.tensor(self._snapshot_steps),
            **{key: torch.tensor(values) for key, values in columns.items()},
            network=self.network or self._probe.network,
            layers=[layer.name for layer in self._layers],
            sizes=[layer.size for layer in self._layers],
            settings={
                "batches_per_epoch": trainer.num_training_batches,
                "snapshot_every_n_steps": self.snapshot_every_n_steps,
                "snapshot_every_n_batches": self._spacing,
                "check_every_n_batches": self._check_spacing,
                "sample_seed": self.seed,
                "optimizer": type(trainer.optimizers[0]).__name__,
                "versions": {"torch": torch.__version__, "smartfrz_lightning": __version__},
            },
        )
        path = Path(self.path or Path(trainer.log_dir or trainer.default_root_dir) / "recording.safetensors")
        recording.save(path)
        print(f"recording of {len(self._snapshots)} snapshots and {len(self._checks)} checks: {path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._observer is not None:
            self._observer.stop()
        if self._probe is not None:
            self._probe.remove_hooks()
