"""An image classifier with any network, as a LightningModule."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from smartfrz_lightning.experiments.weights import load_weights


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


class ImageClassifier(LightningModule):
    """Cross-entropy training of an image classifier.

    Args:
        network: Gives logits ``[batch, num_classes]`` for images ``[batch, channels, height, width]``.
        num_classes: Number of classes.
        optimizer: Makes the optimizer from the parameters; SGD with momentum 0.9 as in the paper by default.
        schedule: ``"cosine"`` anneals the learning rate to zero over the run, ``"constant"`` leaves it.
        weights: File of pretrained weights, see ``load_weights``.
        fresh: Patterns of what is not taken from there, such as ``"linear.*"`` for a new head.
        head_rate: Learning rate of the last module with parameters, relative to that of all others.

    Raises:
        FileNotFoundError: There is no such file of weights.
        ValueError: The weights do not fit the network, ``schedule`` is unknown, ``head_rate`` is not above 0; in the
            first step: the network has another number of outputs.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        optimizer: OptimizerCallable = _sgd,
        schedule: Literal["cosine", "constant"] = "cosine",
        weights: str | None = None,
        fresh: Sequence[str] = (),
        head_rate: float = 1.0,
    ) -> None:
        super().__init__()
        if schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule={schedule!r}: give 'cosine' or 'constant'")
        if head_rate <= 0:
            raise ValueError(f"head_rate={head_rate}: must be above 0")
        if weights is not None:
            load_weights(network, weights, fresh)
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule
        self.head_rate = head_rate
        self.num_classes = num_classes
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self._logits(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self._logits(images)
        self.accuracy(logits, labels)
        self.log("val_loss", F.cross_entropy(logits, labels), sync_dist=True)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def _logits(self, images: Tensor) -> Tensor:
        logits = self(images)
        if logits.shape[-1] != self.num_classes:
            raise ValueError(f"num_classes={self.num_classes}, but the network has {logits.shape[-1]} outputs")
        return logits

    def _groups(self) -> Any:
        if self.head_rate == 1:
            return self.parameters()
        head = [module for module in self.network.modules() if next(module.parameters(recurse=False), None) is not None]
        of_head = set(head[-1].parameters())
        rest = [parameter for parameter in self.parameters() if parameter not in of_head]
        return [{"params": rest}, {"params": list(head[-1].parameters())}]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self._groups())
        if self.head_rate != 1:
            optimizer.param_groups[-1]["lr"] *= self.head_rate
        if self.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
