"""Seed every epoch for itself."""

import random

import numpy
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class EpochSeed(Callback):
    """Runs of one seed see the same batches, whatever they draw in between.

    Under DDP every process draws numbers of its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        number = (self.seed + 1_000_003 * trainer.global_rank) * 100_003 + trainer.current_epoch
        torch.manual_seed(number)
        random.seed(number)
        numpy.random.seed(number % 2**32)
