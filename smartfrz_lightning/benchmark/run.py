"""One run of a benchmark: train, validate, and say what it cost."""

import contextlib
import copy
import functools
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ProgressBar,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smartfrz_lightning.benchmark.epoch_seed import EpochSeed
from smartfrz_lightning.benchmark.meter import TrainingMeter
from smartfrz_lightning.benchmark.spec import Benchmark, Run
from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.predictor.weights import SHIPPED
from smartfrz_lightning.private.pytorch import tree_leaves
from smartfrz_lightning.private.trainer import FitCLI, callbacks_of
from smartfrz_lightning.report.timeline import Timeline
from smartfrz_lightning.version import __version__

MEASURE = {"class_path": "StaticFreezeCallback", "init_args": {"layers": 0, "report": False}}

_IDLE = (Checkpoint, LearningRateMonitor, DeviceStatsMonitor, ProgressBar)
"""Of an experiment: the last weights alone are kept, there is no logger, and progress is that of all runs."""


class SettingsError(ValueError):
    """A run cannot be done as it is set; every process finds so alike."""


def run_once(
    benchmark: Benchmark,
    name: str,
    run: Run,
    seed: int,
    max_steps: int | None = None,
    on_epoch: Callable[[Trainer], None] | None = None,
) -> dict[str, Any]:
    """Do one run; returns everything that the table and the picture are made of, as plain values."""
    folder = benchmark.folder(name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with log_file(folder).open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        # Without a method, training is plain: what the engine costs, the others' times show.
        own = {"report": str(folder), **run.arguments}
        chosen = [{"class_path": run.callback, "init_args": own}] if run.callback else []
        arguments = _arguments(benchmark, run, seed, folder, chosen, max_steps)
        try:
            cli = _cli(arguments, _IDLE)
        except SystemExit as error:  # what is wrong stands in the log
            raise SettingsError("its config cannot be parsed") from error
        trainer, meter = cli.trainer, TrainingMeter()
        _check_processes(trainer)
        callbacks = callbacks_of(trainer)
        freezing = [type(one).__name__ for one in callbacks if isinstance(one, FreezingCallback)]
        if len(freezing) > len(chosen):
            raise SettingsError(f"the experiment has a {freezing[0]}: take it out, methods name their callbacks")
        callbacks[:0] = [meter, EpochSeed(seed)]
        if on_epoch is not None:
            callbacks.append(LambdaCallback(on_train_epoch_end=lambda trainer, _: on_epoch(trainer)))
        for old in folder.glob("freeze_timeline*"):
            old.unlink()  # of a run that was killed: reports overwrite nothing
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.fit(cli.model, datamodule=cli.datamodule)
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        trainer.save_checkpoint(folder / "last.ckpt")
        validated = trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
        freezer = next((c for c in callbacks if isinstance(c, FreezingCallback)), None)
        timeline = freezer.timeline if freezer else Timeline()
        if not chosen:
            timeline = _plain_timeline(_arguments(benchmark, run, seed, folder, [MEASURE], 1), meter)
            timeline.steps = trainer.global_step
    metrics = {name: value for of_loader in validated for name, value in of_loader.items()}
    if benchmark.metric not in metrics:
        raise SettingsError(f"metric={benchmark.metric!r}: validation logs {sorted(metrics)}")
    result = {
        "run": name,
        "seed": seed,
        "digest": digest(benchmark, run),
        "value": metrics[benchmark.metric],
        "metrics": metrics,
        "steps": trainer.global_step,
        "seconds": meter.seconds,
        "timeline": timeline.state_dict(),
        "peak_bytes": peak,
        **_circumstances(trainer.world_size),
    }
    return trainer.strategy.broadcast(result)  # all processes go on alike


def log_file(folder: Path) -> Path:
    """Where this process writes what a run says."""
    return folder / ("log.txt" if rank_zero_only.rank == 0 else f"log_{rank_zero_only.rank}.txt")


def processes() -> int:
    """How many processes do the benchmark together: those of an earlier run, or those that a launcher started."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", 1))


def _check_processes(trainer: Trainer) -> None:
    """Those that an earlier run left, or that torchrun started, would all do a run that is meant for fewer."""
    if processes() > 1 and trainer.world_size != processes():
        raise SettingsError(
            f"devices x num_nodes = {trainer.world_size}, but {processes()} processes run this benchmark: all of its "
            "runs must use as many"
        )


def digest(benchmark: Benchmark, run: Run) -> str:
    """Fingerprint of all that a run depends on: its settings, this package's code, the predictor."""
    experiment = [Path(path).read_text() for path in benchmark.experiment]
    settings = [experiment, run.callback, run.arguments, run.overrides, run.share, benchmark.metric]
    settings += [_code(), _predictor(run)]
    return sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _predictor(run: Run) -> str:
    given = [Path(leaf) for leaf in tree_leaves(run.arguments) if isinstance(leaf, str)]  # one may be a predictor
    paths = [*sorted(SHIPPED.glob("*.safetensors")), *given]
    return sha256(b"".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()


def _plain_timeline(arguments: list[str], meter: TrainingMeter) -> Timeline:
    """What a plain fit cost: its batches, at the price of one step of the same experiment that is measured now."""
    cli, own = _cli(arguments, (*_IDLE, EarlyStopping)), TrainingMeter()  # nothing is validated
    callbacks_of(cli.trainer).append(own)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    measured = next(c for c in callbacks_of(cli.trainer) if isinstance(c, FreezingCallback)).timeline
    full = measured.full.times(meter.seen / own.seen)
    return Timeline(layers=measured.layers, cost=measured.cost, spent=full, full=full)


def _cli(arguments: list[str], idle: tuple[type[Callback], ...]) -> FitCLI:
    cli = FitCLI(args=arguments, run=False, save_config_kwargs={"overwrite": True})
    callbacks = callbacks_of(cli.trainer)
    callbacks[:] = [one for one in callbacks if not isinstance(one, idle)]
    return cli


def _arguments(
    benchmark: Benchmark, run: Run, seed: int, folder: Path, callbacks: list[dict[str, Any]], max_steps: int | None
) -> list[str]:
    arguments = [f"--config={path}" for path in benchmark.experiment]
    for name, value in benchmark.fill(run.overrides, seed).items():
        for key in reversed(name.split(".")):
            value = {key: value}
        arguments.append(f"--config={json.dumps(value)}")  # as a dotted argument, null would be text
    for callback in benchmark.fill(copy.deepcopy(callbacks), seed):
        arguments.append(f"--trainer.callbacks+={json.dumps(callback)}")
    fixed = {"default_root_dir": str(folder), "logger": False, "num_sanity_val_steps": 0}
    fixed |= {"enable_model_summary": False, **({"max_steps": max_steps} if max_steps else {})}
    return [*arguments, f"--config={json.dumps({'seed_everything': seed, 'trainer': fixed})}"]


def _circumstances(world_size: int) -> dict[str, Any]:
    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads"
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    commit = ""
    with contextlib.suppress(OSError):
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "commit": commit,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "smartfrz_lightning": __version__,
        },
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "processes": world_size,
    }
