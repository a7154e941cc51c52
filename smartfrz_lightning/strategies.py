"""Which strategies freezing works with, and what a wrapper needs after a freeze."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException


def check_strategy(trainer: Trainer) -> None:
    """Raise ``MisconfigurationException`` for a strategy under which layers cannot freeze while training."""
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise MisconfigurationException(
            f"strategy={type(trainer.strategy).__name__} keeps parameters in flattened or sharded buffers, in which a "
            "layer cannot be frozen while training: use a single device or strategy='ddp'"
        )


def after_freeze(trainer: Trainer) -> None:
    """Rebuild the DDP wrapper, so that frozen parameters take no part in the all-reduce.

    Call it on every rank, outside of ``training_step``.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
