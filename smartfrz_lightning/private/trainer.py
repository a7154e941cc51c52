"""Parts of Lightning that are not public, under names of our own."""

from pathlib import Path

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer


class FitCLI(LightningCLI):
    """Takes a config that ``fit`` has saved, without having subcommands: what only ``fit`` uses is not used."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in ("ckpt_path", "weights_only"):
            parser.add_argument(f"--{name}", default=None, help="not used")


def trains_statistics_only(trainer: Trainer) -> bool:
    """Whether this is the last epoch of ``StochasticWeightAveraging``: no training, all BatchNorms measure anew."""
    return trainer.fit_loop._skip_backward


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of a Trainer, which its connector sets from outside."""
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # not declared in the class


def unscale(trainer: Trainer, optimizer: Optimizer) -> None:
    """Take the scale of mixed precision off the gradients of a fused optimizer, which would do it in its own step.

    Lightning does that for all others before it says that they are about to step. The scaler then knows that these
    gradients have been looked at, and tells the optimizer so.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not scaler.is_enabled() or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return
    if scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:
        scaler.unscale_(optimizer)


def unscaled(trainer: Trainer, loss: Tensor) -> Tensor:
    """A loss without the scale that mixed precision has put on it before its backward pass."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return loss if scaler is None else loss / scaler.scale(torch.ones_like(loss))


def logged_step(trainer: Trainer) -> int:
    """The step at which Lightning logs, from 0 on, after a batch whose optimizer has stepped."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def checkpoint_file(path: Path) -> Path:
    """The file of a checkpoint, which may be a folder of shards, in which the callbacks' states are."""
    return path / _METADATA_FILENAME if path.is_dir() else path


def begin_static_graph(strategy: DDPStrategy) -> None:
    """The wrapper is a new one, whose static graph Lightning has yet to see."""
    strategy._pl_static_graph_delay_done = False
