"""Small data, a small LightningModule and a small network."""

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset


class Vectors(Dataset):
    """Real-valued inputs whose class can be learned; item i is always the same. Of eight batches the last has five."""

    def __init__(self, size=61, features=12):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(size, features, generator=generator)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


class Classifier(LightningModule):
    """A network, an optimizer and the losses it saw."""

    def __init__(self, net, optimizer=None):
        super().__init__()
        self.net = net
        self.make = optimizer or sgd
        self.losses = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.make(self.parameters())

    def train_dataloader(self):
        return DataLoader(Vectors(), 8)

    def val_dataloader(self):
        return DataLoader(Vectors(), 32)


class Endless(Classifier):
    """Its loader has no length."""

    def train_dataloader(self):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(Vectors())

        return DataLoader(Stream(), 8)


def mlp(seed=0, norm=True):
    torch.manual_seed(seed)
    block = [nn.Linear(12, 16), nn.BatchNorm1d(16) if norm else nn.LayerNorm(16), nn.ReLU(), nn.Dropout(0.1)]
    second = [nn.Linear(16, 16), nn.BatchNorm1d(16) if norm else nn.LayerNorm(16), nn.ReLU()]
    return nn.Sequential(*block, *second, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
