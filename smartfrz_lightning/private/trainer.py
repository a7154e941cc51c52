"""Parts of Lightning that are not public, under names of our own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer


def trains_statistics_only(trainer: Trainer) -> bool:
    """Whether this is the last epoch of ``StochasticWeightAveraging``: no training, all BatchNorms measure anew.

    Example:
        >>> from lightning.pytorch import Callback, Trainer
        >>> from smartfrz_lightning.private.trainer import trains_statistics_only
        >>> trains_statistics_only(Trainer(accelerator="cpu", barebones=True))
        False
    """
    return trainer.fit_loop._skip_backward


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of a Trainer, which its connector sets from outside.

    Example:
        >>> from lightning.pytorch import Callback, Trainer
        >>> from smartfrz_lightning.private.trainer import callbacks_of
        >>> mine = Callback()
        >>> mine in callbacks_of(Trainer(accelerator="cpu", barebones=True, callbacks=[mine]))
        True
    """
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # not declared in the class


def unscale(trainer: Trainer, optimizer: Optimizer) -> None:
    """Take the scale of mixed precision off the gradients of a fused optimizer, which would do it in its own step.

    Lightning does that for all others before it says that they are about to step. The scaler then knows that these
    gradients have been looked at, and tells the optimizer so.

    Example:
        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from smartfrz_lightning.private.trainer import unscale
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> unscale(Trainer(accelerator="cpu", barebones=True), optimizer)  # nothing is scaled
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not scaler.is_enabled() or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return
    if scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:
        scaler.unscale_(optimizer)


@contextmanager
def one_step_earlier(trainer: Trainer, stepped: bool) -> Iterator[None]:
    """``global_step`` as it was before the step of this batch, under automatic optimization.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from smartfrz_lightning.private.trainer import one_step_earlier
        >>> with one_step_earlier(Trainer(accelerator="cpu", barebones=True), stepped=False):
        ...     pass
    """
    total = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    total.completed -= stepped
    try:
        yield
    finally:
        total.completed += stepped


def random_states(device: torch.device) -> tuple[dict[str, Any], torch.Tensor | None]:
    """What PyTorch, NumPy and Python draw next, on the CPU and on this device.

    Lightning's own would ask all GPUs, and so make a context of each process on each of them.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.private.trainer import random_states
        >>> random_states(torch.device("cpu"))[1] is None
        True
    """
    states = _collect_rng_states(include_cuda=False)
    return states, torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _draw_after(states: tuple[dict[str, Any], torch.Tensor | None], device: torch.device) -> None:
    _set_rng_states(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def drawing_again(
    device: torch.device, states: tuple[dict[str, Any], torch.Tensor | None] | None = None
) -> Iterator[None]:
    """What is drawn in here moves nothing outside.

    Args:
        device: Draws too.
        states: Of :func:`random_states`; draw what came after these, or go on from where the generators are.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.private.trainer import drawing_again, random_states
        >>> device = torch.device("cpu")
        >>> states, drawn = random_states(device), torch.rand(2)
        >>> with drawing_again(device, states):
        ...     torch.rand(2).equal(drawn)
        True
    """
    before = random_states(device)
    try:
        if states is not None:
            _draw_after(states, device)
        yield
    finally:
        _draw_after(before, device)


def log_interval(trainer: Trainer) -> int:
    """``log_every_n_steps`` of a Trainer; 0 if it does not log.

    Example:
        >>> from lightning.pytorch import Callback, Trainer
        >>> from smartfrz_lightning.private.trainer import log_interval
        >>> log_interval(Trainer(accelerator="cpu", log_every_n_steps=7, logger=False, enable_checkpointing=False))
        7
    """
    return trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # not declared in the class


def is_trial(trainer: Trainer) -> bool:
    """Whether it is a ``fast_dev_run``.

    Example:
        >>> from lightning.pytorch import Callback, Trainer
        >>> from smartfrz_lightning.private.trainer import is_trial
        >>> is_trial(Trainer(accelerator="cpu", fast_dev_run=3))
        True
    """
    return bool(trainer.fast_dev_run)  # pyright: ignore[reportAttributeAccessIssue]  # not declared in the class


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
