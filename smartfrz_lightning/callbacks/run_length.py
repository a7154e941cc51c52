"""How long a run is, in optimizer steps, as far as its Trainer can know."""

import math

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException


def steps_per_epoch(trainer: Trainer) -> float:
    """Optimizer steps an epoch, ``inf`` where the data loader has no length.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.run_length import steps_per_epoch
        >>> length = {"max_epochs": 1, "limit_train_batches": 10, "accumulate_grad_batches": 4}
        >>> trainer = Trainer(**length, accelerator="cpu", barebones=True)
        >>> trainer.fit(BoringModel())
        >>> steps_per_epoch(trainer)
        3
    """
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches) if _finite(trainer) else math.inf


def steps_total(trainer: Trainer) -> float:
    """Optimizer steps of the whole run, ``inf`` where nothing but time or the user ends it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.run_length import steps_total
        >>> trainer = Trainer(max_epochs=2, limit_train_batches=10, accelerator="cpu", barebones=True)
        >>> trainer.fit(BoringModel())
        >>> steps_total(trainer), steps_total(Trainer(max_epochs=-1, accelerator="cpu", barebones=True))
        (20, inf)
    """
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = math.inf if trainer.max_steps in (None, -1) else trainer.max_steps
    return min(steps, epochs * steps_per_epoch(trainer)) if epochs else steps


def known_length(trainer: Trainer, method: str) -> int:
    """Optimizer steps of the whole run, for a method that cannot do without.

    Raises:
        MisconfigurationException: It cannot be known.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from smartfrz_lightning.callbacks.run_length import known_length
        >>> known_length(Trainer(max_steps=100, accelerator="cpu", barebones=True), "LinearFreezeCallback")
        100
        >>> known_length(Trainer(max_epochs=-1, accelerator="cpu", barebones=True), "Mine")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        lightning...MisconfigurationException: Mine needs the length of the run: give max_epochs or max_steps, and...
    """
    total = steps_total(trainer)
    if total == math.inf:
        raise MisconfigurationException(
            f"{method} needs the length of the run: give max_epochs or max_steps, and with a data loader without "
            "length max_steps"
        )
    if len(trainer.optimizers) > 1 and trainer.max_steps not in (None, -1):
        raise MisconfigurationException(
            f"max_steps={trainer.max_steps} counts the steps of all {len(trainer.optimizers)} optimizers, so {method} "
            "does not know the length of the run: give max_epochs instead"
        )
    return int(total)


def _finite(trainer: Trainer) -> bool:
    return trainer.num_training_batches != math.inf
