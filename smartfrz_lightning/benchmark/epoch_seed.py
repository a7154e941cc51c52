"""Seed every epoch for itself."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class EpochSeed(Callback):
    """Runs of one seed see the same batches, whatever they draw in between, and so does a run that was interrupted.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(self.seed * 100_003 + trainer.current_epoch)
