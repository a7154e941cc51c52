"""Measure what freezing would save, choose a prefix, freeze it by hand.

python examples/plan_and_freeze.py
"""

import argparse

import torch
from lightning import Trainer, seed_everything

from smartfrz_lightning import PlanCallback, StaticFreezeCallback
from smartfrz_lightning.experiments.classifier import ImageClassifier
from smartfrz_lightning.experiments.efficientnet_lite0 import efficientnet_lite0
from smartfrz_lightning.experiments.images import DigitsDataModule


def model():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    return ImageClassifier(efficientnet_lite0(num_classes=10), optimizer=sgd)


def trainer(callback, epochs):
    return Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--safe", type=float, default=0.6, help="least p(safe)")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    given = parser.parse_args()

    seed_everything(1)
    data = DigitsDataModule(batch_size=16, size=given.size, channels=3)
    plan = PlanCallback()
    trainer(plan, given.epochs).fit(model(), datamodule=data)

    safe = [prefix for prefix in plan.plan if prefix.safe is not None and prefix.safe >= given.safe]
    chosen = min(safe, key=lambda prefix: prefix.flops, default=plan.plan[0])
    print(f"the first {chosen.layers} layers are frozen: a step has {chosen.flops:.0%} of its FLOPs")

    seed_everything(1)
    training = trainer(StaticFreezeCallback(layers=chosen.layers), given.epochs)
    training.fit(model(), datamodule=data)
    print({name: round(float(value), 4) for name, value in training.callback_metrics.items() if name.startswith("val")})


if __name__ == "__main__":
    main()
