"""Train the predictor, offline and once."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from smartfrz_lightning.predictor.network import AttentionPredictor, Representation
from smartfrz_lightning.predictor.scores import PredictorScores


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-3)


class PredictorModule(LightningModule):
    """Fit an ``AttentionPredictor`` to labelled windows.

    Validation logs AUROC, average precision and accuracy over all windows, the same for each network, and the AUROC
    among the layers of one network at one check (0.5 is a coin). When the fit ends, the predictor is written to
    ``path`` with a card beside it.

    Args:
        path: Safetensors file to write.
        representation: What the predictor sees of a snapshot.
        sample_size: Sampled weights a snapshot; that of the recordings.
        optimizer: Makes the optimizer; SGD with momentum as in the paper.
    """

    def __init__(
        self,
        path: str,
        representation: Representation = "displacement",
        sample_size: int = 1024,
        optimizer: OptimizerCallable = _sgd,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.predictor = AttentionPredictor(sample_size, representation=representation)
        self.optimizer = optimizer

    def setup(self, stage: str) -> None:
        data = self._data
        if data.sample_size != self.predictor.sample_size:
            raise ValueError(
                f"sample_size={self.predictor.sample_size}, but the recordings sample {data.sample_size} weights: "
                f"use sample_size={data.sample_size}"
            )
        self._shown = ["all", *sorted({run.network for run in data.runs if run.network in data.held_out})]
        self.metrics = torch.nn.ModuleList(PredictorScores() for _ in self._shown)
        self.networks = data.networks
        counts = data.train.labels.bincount(minlength=2).clamp_min(1)
        self.register_buffer("label_weight", counts.sum() / (2 * counts), persistent=False)

    @property
    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule")  # noqa: B009  # the class does not declare what its connector sets

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        weight = self.get_buffer("label_weight")  # both labels count the same in total
        loss = F.cross_entropy(self.predictor(batch["window"], batch["length"]), batch["label"], weight)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        confidence = self.predictor(batch["window"], batch["length"]).softmax(-1)[:, 1]
        for name, scores in self._scores():
            chosen = slice(None) if name == "all" else batch["network"] == self.networks.index(name)
            scores.update(confidence[chosen], batch["label"][chosen], batch["instant"][chosen])

    def on_validation_epoch_end(self) -> None:
        for name, scores in self._scores():
            prefix = "val" if name == "all" else f"val/{name}"
            values = {f"{prefix}/{key}": value for key, value in scores.compute().items()}
            self.log_dict(values, prog_bar=name == "all")
            scores.reset()

    def _scores(self) -> list[tuple[str, PredictorScores]]:
        pairs = zip(self._shown, self.metrics, strict=True)
        return [(name, scores) for name, scores in pairs if isinstance(scores, PredictorScores)]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero:
            return
        data = self._data
        about = {
            "trained_on": sorted({run.network for run in data.runs} - set(data.held_out)),
            "held_out": data.held_out,
            "label": f"CKA range over the last epoch of checks below {data.epsilon}",
            "window": data.window,
            "windows": len(data.train),
            "share_labelled_freeze": round(float(data.train.labels.float().mean()), 4),
            "validation": {k: round(float(v), 4) for k, v in self.trainer.callback_metrics.items() if "val" in k},
        }
        self.predictor.save(self.path, **about)
        lines = [f"# {self.path.stem}", "", f"Representation: {self.predictor.representation}.", ""]
        lines += [f"- {key}: {value}" for key, value in about.items()]
        self.path.with_suffix(".md").write_text("\n".join(lines) + "\n")
        print(f"predictor: {self.path}")
