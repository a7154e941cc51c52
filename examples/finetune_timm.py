"""Fine-tune a timm model on a folder of images.

python examples/finetune_timm.py data/photos  # data/photos/{train,test}/<class>/*
"""

import argparse

import timm
import torch
from lightning import LightningModule, Trainer, seed_everything
from timm.data import create_transform, resolve_data_config
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from smartfrz_lightning import SmartFreezeCallback


class FineTuning(LightningModule):
    """A network with a new head, whose learning rate is ten times that of the body."""

    def __init__(self, network, lr):
        super().__init__()
        self.network, self.lr = network, lr

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        accuracy = (self.network(images).argmax(1) == labels).float().mean()
        self.log("val_accuracy", accuracy, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self):
        head = list(self.network.get_classifier().parameters())
        ids = {id(parameter) for parameter in head}
        body = [parameter for parameter in self.network.parameters() if id(parameter) not in ids]
        groups = [{"params": body, "lr": self.lr}, {"params": head, "lr": 10 * self.lr}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--network", default="mobilenetv3_small_050", help="name in timm")
    parser.add_argument("--no-pretrained", dest="pretrained", action="store_false", help="random weights: no download")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--plain", action="store_true", help="train everything, to compare")
    given = parser.parse_args()

    seed_everything(1)
    classes = len(ImageFolder(f"{given.folder}/train").classes)
    network = timm.create_model(given.network, pretrained=given.pretrained, num_classes=classes)
    data = resolve_data_config({}, model=network)
    train = ImageFolder(f"{given.folder}/train", create_transform(**data, is_training=True, auto_augment=None))
    test = ImageFolder(f"{given.folder}/test", create_transform(**data))

    callbacks = [] if given.plain else [SmartFreezeCallback()]
    trainer = Trainer(max_epochs=given.epochs, callbacks=callbacks, logger=False, enable_checkpointing=False)
    trainer.fit(
        FineTuning(network, given.lr),
        DataLoader(train, given.batch_size, shuffle=True, drop_last=True),
        DataLoader(test, given.batch_size),
    )
    print(f"accuracy {trainer.callback_metrics['val_accuracy']:.1%}")


if __name__ == "__main__":
    main()
