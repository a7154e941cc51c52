"""How long a Trainer's run is and how far it has come, as far as the Trainer can know."""

import math

from lightning.pytorch import Trainer


def total_batches(trainer: Trainer) -> float:
    """Training batches of the whole run, ``inf`` where nothing but time or the user ends it.

    ``max_steps`` counts optimizer steps; how many batches they take is known only to a module that steps by itself, so
    this takes one step for every ``accumulate_grad_batches``.
    """
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = math.inf if trainer.max_steps in (None, -1) else trainer.max_steps
    batches = steps * trainer.accumulate_grad_batches
    return min(batches, epochs * trainer.num_training_batches) if epochs else batches


def position(trainer: Trainer) -> tuple[int, float, float | None]:
    """Batches done, epochs done with fraction, and the share of the run that is done; for the end of a training batch.

    The share is that of epochs or that of ``max_steps``, whichever is further; ``None`` where neither is known. Both
    hold whatever a module does between its batches and its optimizers' steps.
    """
    per_epoch, epoch, batch = trainer.num_training_batches, trainer.current_epoch, trainer.fit_loop.batch_idx + 1
    shares = []
    if per_epoch < math.inf:
        batches, epochs = epoch * int(per_epoch) + batch, epoch + batch / per_epoch
        if trainer.max_epochs not in (None, -1):
            shares.append(epochs / trainer.max_epochs)
    else:
        batches, epochs = trainer.fit_loop.total_batch_idx + 1, float(epoch)
    if trainer.max_steps not in (None, -1):
        shares.append(trainer.global_step / trainer.max_steps)
    return batches, epochs, min(1.0, max(shares)) if shares else None
