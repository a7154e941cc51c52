"""Which of Lightning's strategies freezing works with, and what they need for it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.parallel import DistributedDataParallel

from smartfrz_lightning.freezing.wrappers import rebuild_ddp, reshard
from smartfrz_lightning.private.trainer import begin_static_graph, checkpoint_file


def check_strategy(trainer: Trainer, method: str, works_sharded: bool) -> None:
    """Raise ``MisconfigurationException`` for a strategy under which a method cannot freeze layers while training.

    A Trainer of the package ``pytorch_lightning`` is a ``TypeError``.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"{method} is a callback of the package lightning, and this is a Trainer of {type(trainer).__module__}: "
            "the two packages have the same code but do not know each other's classes. Import Trainer and "
            "LightningModule from lightning.pytorch instead of pytorch_lightning"
        )
    strategy = type(trainer.strategy).__name__
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
        raise MisconfigurationException(
            f"strategy={strategy} keeps parameters in flattened buffers, in which a layer cannot be frozen while "
            "training: use a single device, strategy='ddp', or FSDP2 (ModelParallelStrategy)"
        )
    if isinstance(trainer.strategy, ModelParallelStrategy) and not works_sharded:
        raise MisconfigurationException(
            f"strategy={strategy} shards parameters, and {method} needs whole ones: use a single device or "
            "strategy='ddp'"
        )


def before_late_restore(
    trainer: Trainer, state_key: str, take_up: Callable[[dict[str, Any]], contextlib.AbstractContextManager]
) -> None:
    """Hand a callback its state before a strategy restores model and optimizers at once, after ``on_fit_start``.

    FSDP2 does so, and its optimizer states fit only once the same parameters are frozen as when they were saved. No
    hook knows the checkpoint's path by then, so the strategy's ``load_checkpoint`` is intercepted, once.

    Args:
        trainer: About to fit.
        state_key: The callback's.
        take_up: Called with its state, if the checkpoint has one; in what it returns, the checkpoint is loaded.
    """
    strategy = trainer.strategy
    if not strategy.restore_checkpoint_after_setup:
        return
    load = strategy.load_checkpoint

    def load_checkpoint(checkpoint_path: str | Path, **kwargs: Any) -> dict[str, Any]:
        forget_late_restore(trainer)
        path = Path(strategy.broadcast(checkpoint_path))
        file = checkpoint_file(path)
        saved = torch.load(file, map_location="cpu", mmap=path.is_file(), weights_only=kwargs.get("weights_only"))
        state = saved.get("callbacks", {}).get(state_key)
        with contextlib.nullcontext() if state is None else take_up(state):
            return load(checkpoint_path, **kwargs)

    vars(load_checkpoint)["instead_of"] = load
    vars(strategy)["load_checkpoint"] = load_checkpoint


def forget_late_restore(trainer: Trainer) -> None:
    """Take back ``before_late_restore``; does nothing if there is nothing to take back."""
    own = vars(trainer.strategy).get("load_checkpoint")
    if own is not None and "instead_of" in vars(own):
        vars(trainer.strategy)["load_checkpoint"] = own.instead_of


class TrainerProcesses:
    """How the processes of a Trainer agree, and what its strategy needs when it changes what trains."""

    def __init__(self, trainer: Trainer) -> None:
        self._strategy = trainer.strategy
        self.is_first = trainer.is_global_zero

    def agree(self, value: Any) -> Any:
        """What the first process gives."""
        return self._strategy.broadcast(value)

    def before_change(self) -> None:
        """FSDP2's modules go back to their sharded parameters, which are those that freeze."""
        model = self._strategy.lightning_module
        if isinstance(self._strategy, ModelParallelStrategy) and model is not None:
            reshard(model)

    def after_change(self) -> None:
        """The DDP wrapper is built anew, so that frozen parameters take no part in the all-reduce.

        Call it on every rank, outside of ``training_step``.
        """
        strategy = self._strategy
        if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
            rebuild_ddp(strategy.model)
            begin_static_graph(strategy)
