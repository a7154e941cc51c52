"""A freezing method whose decisions are written down beforehand, and a record of what every process ended with."""

from pathlib import Path

import torch
from lightning.pytorch import Callback

from smartfrz_lightning.callbacks.base import FreezingCallback


class ScriptedFreeze(FreezingCallback):
    """Freeze the layers with given numbers after given steps."""

    def __init__(self, script, every_n_train_steps=1, **kwargs):
        super().__init__(every_n_train_steps=every_n_train_steps, **kwargs)
        self.script = script

    def select(self, trainer, pl_module, active):
        numbers = self.script.get(self.timeline.steps, ())
        chosen = {self.layers[number].name for number in numbers}
        return [layer.name for layer in active if layer.name in chosen]


class SaveEnd(Callback):
    """Every process writes its weights and what froze."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_end(self, trainer, pl_module):
        freezer = next(callback for callback in trainer.callbacks if isinstance(callback, FreezingCallback))
        outcome = {"weights": pl_module.state_dict(), "frozen": freezer.frozen, "world": trainer.world_size}
        torch.save(outcome, self.folder / f"rank{trainer.global_rank}.pt")
