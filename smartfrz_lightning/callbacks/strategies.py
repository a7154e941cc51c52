"""Which of Lightning's strategies freezing works with, and what they need for it."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from smartfrz_lightning.engine.freezer import Freezer
from smartfrz_lightning.engine.processes import Processes
from smartfrz_lightning.freezing.freeze import freeze, thaw
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


def before_late_restore(trainer: Trainer, state_key: str, freezer: Freezer) -> None:
    """Hand a callback its state before a strategy restores model and optimizers at once, after ``on_fit_start``.

    FSDP2 does so, and its optimizer states fit only once the same parameters are frozen as when they were saved. No
    hook knows the checkpoint's path by then, so the strategy's ``load_checkpoint`` is intercepted, once.

    What thawed after the last step has no optimizer state yet, and FSDP2 wants one of all that trains: it is frozen
    meanwhile.
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
        fresh = []
        if (state := saved.get("callbacks", {}).get(state_key)) is not None:
            freezer.load_state_dict(state)
            now = freezer.run.global_steps
            last = {event.layer: (event.kind, event.step) for event in freezer.timeline.events}
            fresh = [layer for layer in freezer.run.layers if last.get(layer.name) == ("thaw", now)]
        freeze(freezer.run.model, fresh)
        try:
            return load(checkpoint_path, **kwargs)
        finally:
            thaw(freezer.run.model, fresh)

    vars(load_checkpoint)["instead_of"] = load
    vars(strategy)["load_checkpoint"] = load_checkpoint


def forget_late_restore(trainer: Trainer) -> None:
    """Take back ``before_late_restore``; does nothing if there is nothing to take back."""
    own = vars(trainer.strategy).get("load_checkpoint")
    if own is not None and "instead_of" in vars(own):
        vars(trainer.strategy)["load_checkpoint"] = own.instead_of


class TrainerProcesses(Processes):
    """How the processes of a Trainer agree, and what its strategy needs when it changes what trains."""

    def __init__(self, trainer: Trainer) -> None:
        self._strategy = trainer.strategy
        self.is_first = trainer.is_global_zero

    def agree(self, value: Any) -> Any:
        return self._strategy.broadcast(value)

    def mean(self, values: Tensor) -> Tensor:
        return self._strategy.reduce(values.to(self._strategy.root_device, copy=True), reduce_op="mean")

    def before_change(self) -> None:
        model = self._strategy.lightning_module
        if isinstance(self._strategy, ModelParallelStrategy) and model is not None:
            reshard(model)

    def after_change(self) -> None:
        strategy = self._strategy
        if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
            rebuild_ddp(strategy.model)
            begin_static_graph(strategy)
