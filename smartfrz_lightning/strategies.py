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

    Communication hooks are kept. Call it on every rank, outside of ``training_step``.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return
    hooks = list(strategy.model._comm_hooks)
    settings = strategy._ddp_kwargs
    strategy.model = strategy.lightning_module
    strategy._ddp_kwargs = {**settings, "init_sync": False}  # all ranks hold the same weights already
    try:
        strategy.configure_ddp()
    finally:
        strategy._ddp_kwargs = settings
    strategy._pl_static_graph_delay_done = False
    for hook, state in hooks:
        for name in ("error_dict", "p_memory_dict", "q_memory_dict"):  # PowerSGD's, by bucket: the buckets are others
            getattr(state, name, {}).clear()
        if (hook, state) not in strategy.model._comm_hooks:
            strategy.model.register_comm_hook(state, hook)
