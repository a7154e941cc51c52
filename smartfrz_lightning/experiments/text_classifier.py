"""A text classifier over ``transformers``, as a LightningModule. Needs the extra ``text``."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassMatthewsCorrCoef

from smartfrz_lightning.extras import require

require("transformers", "text")

from transformers import AutoConfig, AutoModelForSequenceClassification, get_scheduler  # noqa: E402


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.01)


class TextClassifier(LightningModule):
    """Fine-tune a transformer on classified sentences or pairs of sentences.

    Validation logs ``val_loss``, ``val_accuracy``, ``val_matthews`` (CoLA's measure), and for two classes ``val_f1``
    (MRPC's second measure).

    Args:
        model: Name on the Hugging Face hub, or a local folder with ``config.json`` and weights.
        num_classes: Number of classes. Where pretrained weights have a head for another number, it starts afresh.
        optimizer: Makes the optimizer from the parameters; AdamW with a learning rate of 2e-5 by default.
        schedule: ``"linear"`` or ``"cosine"`` anneals the learning rate to zero over the run, ``"constant"`` leaves it.
        warmup: Share of the steps in which the annealed rate first rises to its full value.

    Raises:
        OSError: There is no such model.
        ValueError: ``warmup`` is not a share, or ``schedule`` is unknown.
    """

    def __init__(
        self,
        model: str,
        num_classes: int = 2,
        optimizer: OptimizerCallable = _adamw,
        schedule: Literal["linear", "cosine", "constant"] = "linear",
        warmup: float = 0.06,
    ) -> None:
        super().__init__()
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup}: give a share of the steps, 0 to 1")
        if schedule not in ("linear", "cosine", "constant"):
            raise ValueError(f"schedule={schedule!r}: give 'linear', 'cosine' or 'constant'")
        try:
            config = AutoConfig.from_pretrained(model, num_labels=num_classes)
            if config.pad_token_id is None:  # decoders have none
                config.pad_token_id = config.eos_token_id
            self.model = AutoModelForSequenceClassification.from_pretrained(
                model, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
            )
        except OSError as error:
            raise OSError(f"model={model!r} is no local folder and cannot be loaded from the hub: {error}") from error
        self.model.train()
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup = warmup
        measures: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "matthews": MulticlassMatthewsCorrCoef(num_classes),
        }
        if num_classes == 2:
            measures["f1"] = BinaryF1Score()
        self.metrics = MetricCollection(measures, prefix="val_")

    def forward(self, **tokens: Tensor) -> Tensor:
        """Logits ``[batch, num_classes]`` of token batches ``[batch, tokens]``."""
        return self.model(**tokens).logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, _ = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss, logits = self._loss(batch)
        self.metrics.update(logits.argmax(-1), batch["labels"])
        self.log("val_loss", loss, batch_size=len(logits), sync_dist=True)
        self.log_dict(self.metrics, prog_bar=True, batch_size=len(logits))

    def _loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        return torch.nn.functional.cross_entropy(logits, batch["labels"]), logits

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler(self.schedule, optimizer, round(self.warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
