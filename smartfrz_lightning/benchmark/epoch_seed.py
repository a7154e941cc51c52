"""Seed every epoch for itself."""

import random

import numpy
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class EpochSeed(Callback):
    """Runs of one seed see the same batches, whatever they draw in between, and so does a run that was interrupted.

    That holds for data loaded in the process that trains; with workers, an interrupted run goes on with other batches.
    Under DDP every process draws numbers of its own.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._started = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        number = (self.seed + 1_000_003 * trainer.global_rank) * 100_003 + trainer.current_epoch
        torch.manual_seed(number)
        random.seed(number)
        numpy.random.seed(number % 2**32)
        if trainer.current_epoch and not self._started:
            # A resumed run has made its data iterator before, an uninterrupted one is about to: that draws a number.
            torch.empty((), dtype=torch.int64).random_()
        self._started = True
