"""How long a Trainer's run is and how far it has come, as far as the Trainer can know."""

import math

from lightning.pytorch import Trainer


def total_batches(trainer: Trainer) -> float:
    """Training batches of the whole run, ``inf`` where nothing but time or the user ends it.

    ``max_steps`` counts optimizer steps; how many batches they take is known only to a module that steps by itself, so
    this takes one step for every ``accumulate_grad_batches``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.run_position import total_batches
        >>> trainer = Trainer(max_epochs=2, limit_train_batches=10, accelerator="cpu", barebones=True)
        >>> trainer.fit(BoringModel())
        >>> total_batches(trainer), total_batches(Trainer(max_epochs=-1, accelerator="cpu", barebones=True))
        (20, inf)
    """
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = math.inf if trainer.max_steps in (None, -1) else trainer.max_steps
    batches = steps * trainer.accumulate_grad_batches
    return min(batches, epochs * trainer.num_training_batches) if epochs else batches


def position(trainer: Trainer) -> tuple[int, float, float | None]:
    """Batches done, epochs done with fraction, and the share of the run that is done; for the end of a training batch.

    The share is that of epochs or that of ``max_steps``, whichever is further; ``None`` where neither is known. Both
    hold whatever a module does between its batches and its optimizers' steps.

    Example:
        >>> from lightning.pytorch import Callback, Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.run_position import position
        >>> class Show(Callback):
        ...     def on_train_batch_end(self, trainer, *_):
        ...         print(position(trainer))
        >>> quiet = {"accelerator": "cpu", "barebones": True}
        >>> Trainer(max_epochs=2, limit_train_batches=2, callbacks=[Show()], **quiet).fit(BoringModel())
        (1, 0.5, 0.25)
        (2, 1.0, 0.5)
        (3, 1.5, 0.75)
        (4, 2.0, 1.0)
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
