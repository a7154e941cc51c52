"""Train the prefix predictor, offline and once."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from smartfrz_lightning.predictor.consequences import MARGIN
from smartfrz_lightning.predictor.prefix import PrefixPredictor


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=0.02)


class PrefixModule(LightningModule):
    """Fit a :class:`~smartfrz_lightning.predictor.prefix.PrefixPredictor` to what freezing has cost.

    Validation logs log loss, AUROC and calibration error. When the fit ends, the predictor is written to ``path``.

    Args:
        path: Safetensors file to write.
        optimizer: Makes the optimizer.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.predictor.prefix_module import PrefixModule
        >>> PrefixModule("mine.safetensors").predictor(torch.rand(3, 4, 2), torch.rand(3, 2)).shape
        torch.Size([3])
    """

    def __init__(self, path: str, optimizer: OptimizerCallable = _adam) -> None:
        super().__init__()
        self.path = Path(path)
        self.predictor = PrefixPredictor()
        self.optimizer = optimizer
        self._said: list[tuple[Tensor, Tensor]] = []

    def _odds(self, batch: dict[str, Tensor]) -> Tensor:
        return self.predictor(batch["seen"], batch["context"], batch["lengths"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self._odds(batch), batch["safe"])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._said.append((self._odds(batch), batch["safe"]))

    def on_validation_epoch_end(self) -> None:
        odds, safe = (torch.cat(part) for part in zip(*self._said, strict=True))
        self._said.clear()
        was = (safe >= 0.5).long()
        scores = {
            "val/log_loss": F.binary_cross_entropy_with_logits(odds, safe),
            "val/auroc": binary_auroc(odds, was),
            "val/calibration_error": binary_calibration_error(odds.sigmoid(), was, n_bins=5),
        }
        self.log_dict(scores, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero:
            return
        data = getattr(self.trainer, "datamodule")  # noqa: B009  # the class does not declare what its connector sets
        about = {
            "trained_on": sorted({branch.network for branch in data.train}),
            "held_out": data.held_out,
            "label": f"costs at most {MARGIN:g} point",
            "branches": len(data.train),
            "validation": {k: round(float(v), 4) for k, v in self.trainer.callback_metrics.items() if "val" in k},
        }
        self.predictor.save(self.path, **about)
        print(f"predictor: {self.path}")
