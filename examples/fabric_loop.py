"""A training loop with Lightning Fabric, frozen by Freezer.

python examples/fabric_loop.py
"""

import argparse

import torch
from lightning.fabric import Fabric
from own_cli import Digits, SmallNetwork

from smartfrz_lightning import Freezer, SmartFreezeCallback


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()

    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    fabric.seed_everything(1)
    data = Digits()
    data.setup("fit")
    module = SmallNetwork()
    network, optimizer = fabric.setup(module.network, torch.optim.AdamW(module.network.parameters(), 1e-3))
    train, test = fabric.setup_dataloaders(data.train_dataloader(), data.val_dataloader())

    def loss_of(batch):
        return torch.nn.functional.cross_entropy(network(batch[0]), batch[1])

    freezer = Freezer(
        network,
        optimizer,
        SmartFreezeCallback(),
        batches_per_epoch=len(train),
        total_batches=given.epochs * len(train),
        training_step=loss_of,
        backward=fabric.backward,
        say=fabric.print,
    )
    for epoch in range(given.epochs):
        network.train()
        for batch in train:
            with freezer.batch(batch):
                optimizer.zero_grad()
                fabric.backward(freezer.training_step(batch))
                optimizer.step()
        freezer.end_epoch(last=epoch + 1 == given.epochs)
        network.eval()
        with torch.no_grad():
            right = torch.cat([network(images).argmax(1) == labels for images, labels in test])
        fabric.print(f"epoch {epoch}: accuracy {right.float().mean():.1%}")
    freezer.end()
    fabric.print(freezer.report())


if __name__ == "__main__":
    main()
