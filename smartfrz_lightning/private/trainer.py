"""Parts of Lightning that are not public, under names of our own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.strategies.fsdp import _METADATA_FILENAME
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy


def trains_statistics_only(trainer: Trainer) -> bool:
    """Whether this is the last epoch of ``StochasticWeightAveraging``: no training, all BatchNorms measure anew.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from smartfrz_lightning.private.trainer import trains_statistics_only
        >>> trains_statistics_only(Trainer(accelerator="cpu", barebones=True))
        False
    """
    return trainer.fit_loop._skip_backward


def checkpoint_file(path: Path) -> Path:
    """The file of a checkpoint, which may be a folder of shards, in which the callbacks' states are.

    Example:
        >>> from pathlib import Path
        >>> from smartfrz_lightning.private.trainer import checkpoint_file
        >>> checkpoint_file(Path("last.ckpt")).name
        'last.ckpt'
    """
    return path / _METADATA_FILENAME if path.is_dir() else path


@contextmanager
def without_first_sync(strategy: DDPStrategy) -> Iterator[None]:
    """A DDP wrapper that is made in here takes it that all ranks hold the same weights already, as they do.

    Example:
        >>> from lightning.pytorch.strategies import DDPStrategy
        >>> from smartfrz_lightning.private.trainer import without_first_sync
        >>> strategy = DDPStrategy(static_graph=True)
        >>> with without_first_sync(strategy):
        ...     strategy._ddp_kwargs
        {'static_graph': True, 'init_sync': False}
    """
    settings = strategy._ddp_kwargs
    strategy._ddp_kwargs = {**settings, "init_sync": False}
    try:
        yield
    finally:
        strategy._ddp_kwargs = settings
    strategy._pl_static_graph_delay_done = False
