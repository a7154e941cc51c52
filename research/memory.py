"""What freezing saves of memory: bytes of tensors in each part of a run of the quickstart's experiment.

    python -m research.memory

Counted are floating-point tensors that live between two steps (weights, gradients, optimizer states, the second set of
a trial), and, on top of these, the most that autograd holds for backward passes at any time of a step. On a GPU the
allocator and workspaces of libraries come on top. Needs the extra ``imagenet``.
"""

import contextlib
import gc
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from smartfrz_lightning import FreezingCallback, SmartFreezeCallback, StaticFreezeCallback

RESULTS = Path(__file__).parent / "results" / "memory.json"
SHOWN = ("", "MB", "relative")


class MemoryWatch(Callback):
    """Notes the bytes of every step; put it first among the callbacks.

    Attributes:
        steps: Bytes of each step.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._hooks = contextlib.ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = {one.untyped_storage().data_ptr() for one in (*pl_module.parameters(), *pl_module.buffers())}
        self._others = alive().keys() - own  # data, and what another run has left

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._end_step()
        self._kept, self._saved, self._most = alive(), {}, 0
        self._hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor))

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._kept:
            self._saved[storage.data_ptr()] = storage.nbytes()
            self._most = max(self._most, sum(self._saved.values()))
        return tensor

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._saved = {}  # a trial's pass comes after it

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_step()

    def _end_step(self) -> None:
        """Also of what other callbacks do at its end, such as a trial."""
        if hasattr(self, "_kept"):
            self._hooks.close()
            kept = sum(size for storage, size in alive().items() if storage not in self._others)
            self.steps.append(kept + self._most)


def alive() -> dict[int, int]:
    """Bytes of the floating-point tensors that there are, by their storage."""
    tensors = [one for one in gc.get_objects() if isinstance(one, Tensor) and one.is_floating_point()]
    storages = [one.untyped_storage() for one in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def measure(freezer: FreezingCallback | None) -> tuple[list[int], str]:
    """Bytes of every step of the quickstart, and what the callback said."""
    with TemporaryDirectory() as folder:
        args = ["--config=configs/quickstart.yaml", "--trainer.callbacks=[]", f"--trainer.default_root_dir={folder}"]
        args += ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
        cli = LightningCLI(args=[*args, "--trainer.enable_checkpointing=false"], run=False)
        watch = MemoryWatch()
        cli.trainer.callbacks[:0] = [watch, *([freezer] if freezer else [])]
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return watch.steps, "\n".join(freezer.timeline.notes) if freezer else ""


def main() -> None:
    """Write the most bytes of each part of a run; frozen by hand, without the first step, in which layers are found."""
    full = max(measure(None)[0])
    parts = {"full training": full, "half frozen by hand": max(measure(StaticFreezeCallback(0.5, report=False))[0][1:])}
    steps, notes = measure(SmartFreezeCallback(report=False))
    said = re.search(r"a probe of (\d+) steps(?:.|\n)*Trial, steps (\d+) to (\d+)", notes)
    assert said is not None, f"nothing was frozen and tried: {notes}"
    probe, begin, end = map(int, said.groups())
    parts["the default, in the probe"] = max(steps[:probe])
    parts["then, frozen"] = max(steps[probe:begin])
    parts["in the trial"] = max(steps[begin:end])
    parts["to the end"] = max(steps[end:])
    RESULTS.write_text(json.dumps({"notes": notes, "bytes": parts}, indent=1))


def table() -> list[list[str]]:
    """A line for each part: megabytes, and relative to full training."""
    parts = json.loads(RESULTS.read_text())["bytes"]
    return [[name, f"{size / 1e6:.0f}", f"{size / parts['full training']:.2f}"] for name, size in parts.items()]


if __name__ == "__main__":
    main()
