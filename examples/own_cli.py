"""A LightningCLI of one's own; the callback is a line of its YAML file.

python examples/own_cli.py fit --config examples/own_cli.yaml
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Digits(LightningDataModule):
    """scikit-learn's handwritten digits, 8 x 8 pixels."""

    def __init__(self, batch_size: int = 32):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str):
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        whole = TensorDataset(images, torch.tensor(digits.target))
        self.train, self.test = random_split(whole, [0.8, 0.2], torch.Generator().manual_seed(0))

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.test, 256)


class SmallNetwork(LightningModule):
    """Three convolutions and a head."""

    def __init__(self, width: int = 32):
        super().__init__()
        sizes = [1, width, width, 2 * width]
        blocks = [
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in zip(sizes, sizes[1:], strict=False)
        ]
        self.network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_accuracy", (self.network(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


if __name__ == "__main__":
    LightningCLI(SmallNetwork, Digits, save_config_callback=None)
