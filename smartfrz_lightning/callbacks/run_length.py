"""How long a run is, in optimizer steps, as far as its Trainer can know."""

import math

from lightning.pytorch import Trainer


def steps_per_epoch(trainer: Trainer) -> float:
    """Optimizer steps an epoch, ``inf`` where the data loader has no length."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches) if _finite(trainer) else math.inf


def steps_total(trainer: Trainer) -> float:
    """Optimizer steps of the whole run, ``inf`` where nothing but time or the user ends it."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = math.inf if trainer.max_steps in (None, -1) else trainer.max_steps
    return min(steps, epochs * steps_per_epoch(trainer)) if epochs else steps


def _finite(trainer: Trainer) -> bool:
    return trainer.num_training_batches != math.inf
