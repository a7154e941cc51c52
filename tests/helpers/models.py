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


def still(parameters):
    return torch.optim.SGD(parameters, lr=1e-6)


def two(number):
    """Makes an optimizer of the first parameters, and one of the others."""

    def made(parameters):
        parameters = list(parameters)
        return [sgd(parameters[:number]), sgd(parameters[number:])]

    return made


def scheduled(scheduler, optimizer=sgd, interval="epoch"):
    """Makes an optimizer whose rates go by a scheduler."""

    def made(parameters):
        own = optimizer(parameters)
        schedule = {"scheduler": scheduler(own), "interval": interval, "monitor": "val_loss"}
        return {"optimizer": own, "lr_scheduler": schedule}

    return made


class Classifier(LightningModule):
    """A network, an optimizer and the losses it saw."""

    def __init__(self, net, optimizer=None, size=61, batch_size=8):
        super().__init__()
        self.net = net
        self.make = optimizer or sgd
        self.size, self.batch_size = size, batch_size
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
        return DataLoader(Vectors(self.size), self.batch_size)

    def val_dataloader(self):
        return DataLoader(Vectors(), 32)


class Within(nn.Module):
    """A network by the same names as in the LightningModule: which weights are sampled goes by them."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class Manual(Classifier):
    """Manual optimization: several batches a step or several steps a batch, maybe past Lightning's own optimizer."""

    def __init__(self, net, optimizer=None, every=1, times=1, raw=False):
        super().__init__(net, optimizer)
        self.automatic_optimization = False
        self.every, self.times, self.raw = every, times, raw

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers(use_pl_optimizer=not self.raw)
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for _ in range(self.times):
            self.manual_backward(super().training_step(batch, batch_idx))
            due = optimizers if (batch_idx + 1) % self.every == 0 else []
            for optimizer in due:
                optimizer.step()
            for optimizer in due:
                optimizer.zero_grad()


class Tuned(Classifier):
    """Its learning rate is for a finder to find."""

    lr = 0.05

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


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


class Adapter(nn.Module):
    """A layer that never trains, with a small one beside it that does, as LoRA makes it."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def adapted(net):
    """An ``mlp`` with adapters."""
    for number in (0, 4, 7):
        net[number] = Adapter(net[number])
    return net
