"""Fine-tune a sentence encoder of transformers on a CSV file with the columns text and label.

python examples/finetune_text.py reviews.csv --encoder sentence-transformers/all-MiniLM-L6-v2
"""

import argparse
import csv
import random
from functools import partial
from pathlib import Path

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from smartfrz_lightning import SmartFreezeCallback


class TextClassifier(LightningModule):
    """An encoder with a new head."""

    def __init__(self, encoder, classes, lr):
        super().__init__()
        self.network = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=classes)
        self.network.train()  # from_pretrained leaves it in eval mode
        self.lr = lr

    def training_step(self, batch, batch_idx):
        loss = self.network(**batch).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        accuracy = (self.network(**batch).logits.argmax(1) == batch["labels"]).float().mean()
        self.log("val_accuracy", accuracy, prog_bar=True, batch_size=len(batch["labels"]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def collate(tokenizer, names, rows):
    batch = tokenizer([row["text"] for row in rows], padding=True, truncation=True, max_length=128, return_tensors="pt")
    return {**batch, "labels": torch.tensor([names.index(row["label"]) for row in rows])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument(
        "--encoder", default="sentence-transformers/all-MiniLM-L6-v2", help="name on the hub, or a folder"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--plain", action="store_true", help="train everything, to compare")
    given = parser.parse_args()

    seed_everything(1)
    with Path(given.file).open(newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    names = sorted({row["label"] for row in rows})
    held_out = len(rows) // 5
    to_batch = partial(collate, AutoTokenizer.from_pretrained(given.encoder), names)

    callbacks = [] if given.plain else [SmartFreezeCallback()]
    trainer = Trainer(max_epochs=given.epochs, callbacks=callbacks, logger=False, enable_checkpointing=False)
    trainer.fit(
        TextClassifier(given.encoder, len(names), given.lr),
        DataLoader(rows[held_out:], given.batch_size, shuffle=True, drop_last=True, collate_fn=to_batch),
        DataLoader(rows[:held_out], given.batch_size, collate_fn=to_batch),
    )
    print(f"accuracy {trainer.callback_metrics['val_accuracy']:.1%}")


if __name__ == "__main__":
    main()
