"""A freezing method whose decisions are written down beforehand, and a record of what every process ended with."""

from pathlib import Path

import torch
from lightning.pytorch import Callback

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine import Decision


class ScriptedFreeze(FreezingCallback):
    """Freeze the layers with given numbers after given steps, and thaw others."""

    thaws = True

    def __init__(self, script, thaw=None, every_n_train_steps=1, **kwargs):
        super().__init__(every_n_train_steps=every_n_train_steps, **kwargs)
        self.script, self.thaw_script = script, thaw or {}

    def select(self, run):
        def named(script):
            return {run.layers[number].name for number in script.get(run.global_steps, ())}

        freeze = [layer.name for layer in run.active if layer.name in named(self.script)]
        return Decision(freeze, sorted(named(self.thaw_script)))


class States(Callback):
    """Weights and buffers after every batch."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append({name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()})


class FreezeNext(FreezingCallback):
    """Freeze the first layer that trains, whenever asked."""

    def select(self, run):
        return [run.active[0].name]


class SaveEnd(Callback):
    """Every process writes its weights and what froze."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_end(self, trainer, pl_module):
        freezer = next(callback for callback in trainer.callbacks if isinstance(callback, FreezingCallback))
        outcome = {"weights": pl_module.state_dict(), "frozen": freezer.frozen, "world": trainer.world_size}
        torch.save(outcome, self.folder / f"rank{trainer.global_rank}.pt")


class BreaksOnce(Callback):
    """One process fails in the second epoch, the first time, and writes down in which epochs it began."""

    def __init__(self, rank: int, mark: str, report: str = ""):
        self.rank, self.mark = rank, Path(mark)

    def on_train_start(self, trainer, pl_module):
        if trainer.global_rank == self.rank:
            with self.mark.open("a") as mark:
                mark.write(str(trainer.current_epoch))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and trainer.global_rank == self.rank and self.mark.read_text() == "0":
            raise RuntimeError("this machine broke")
