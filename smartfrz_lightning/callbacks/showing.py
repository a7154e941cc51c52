"""What a Trainer shows of freezing: the progress bar, its loggers, and the report at the end."""

import io

import torch
from fsspec.core import url_to_fs
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.console import Console, RenderableType

from smartfrz_lightning.private.trainer import logged_step
from smartfrz_lightning.report.show import plot_timeline, timeline_table
from smartfrz_lightning.report.timeline import Timeline


class FreezeLog:
    """Logs what is frozen whenever that changed, and to loggers as often as the Trainer logs.

    Logging through ``LightningModule.log`` costs a fifth of a millisecond a value and step, so this goes the way of
    Lightning's ``LearningRateMonitor``.
    """

    def __init__(self) -> None:
        self._shown = -1

    def log(self, trainer: Trainer, timeline: Timeline) -> None:
        """Call it after every step."""
        changed = len(timeline.events) != self._shown
        interval = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # not declared in the class
        step = logged_step(trainer)
        due = interval > 0 and (step + 1) % interval == 0
        if not (changed or due):
            return
        values = _values(timeline)
        if changed:
            self._shown = len(timeline.events)
            trainer.progress_bar_metrics["freeze/layers"] = values["freeze/layers"]
        self.finish(trainer, timeline)
        if due:
            trainer.logged_metrics.update({name: torch.tensor(value) for name, value in values.items()})
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

    def finish(self, trainer: Trainer, timeline: Timeline) -> None:
        """Call it when training is over, so that ``callback_metrics`` are those of its end."""
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in _values(timeline).items()})


def _values(timeline: Timeline) -> dict[str, float]:
    return {
        "freeze/layers": float(len(timeline.frozen)),
        "freeze/step_flops": timeline.cost.relative(timeline.frozen) if timeline.cost else 1.0,
        "freeze/flops_saved": timeline.saved,
    }


def show_report(timeline: Timeline, title: str, folder: str | None) -> None:
    """Print the table of a run, and leave its CSV and picture in a folder.

    The folder may be ``s3://...`` and whatever else fsspec knows. Nothing that was written there before is overwritten.
    Whatever fails here costs a warning, never the finished fit.
    """
    lines = []
    if folder is not None:
        try:
            lines.append(f"timeline: {_write(timeline, folder)} and .png")
        except Exception as error:
            rank_zero_warn(f"the freezing timeline could not be written to {folder}: {error!r}; it is in .timeline")
    try:
        print_shown(timeline_table(timeline, title), *lines)
    except Exception as error:
        rank_zero_warn(f"the freezing report could not be printed: {error!r}; it is in .timeline")


def _write(timeline: Timeline, folder: str) -> str:
    system, root = url_to_fs(folder)
    system.makedirs(root, exist_ok=True)
    name, number = "freeze_timeline", 1
    while system.exists(f"{root}/{name}.csv"):
        name, number = f"freeze_timeline-v{number}", number + 1
    with system.open(f"{root}/{name}.csv", "w") as file:
        file.write(timeline.to_csv())
    picture = io.BytesIO()
    plot_timeline(timeline, picture)
    with system.open(f"{root}/{name}.png", "wb") as file:
        file.write(picture.getvalue())
    return system.unstrip_protocol(f"{root}/{name}.csv").removeprefix("file://")


def print_shown(*shown: RenderableType) -> None:
    """Print tables and lines above a progress bar that is still there, also where only ASCII can be."""
    console = Console()
    if console.is_jupyter:  # which has a form of its own for it, and no such bar
        console.print(*shown, sep="\n")
        return
    with console.capture() as captured:  # printed by itself, a bar of rich's would erase the last lines
        console.print(*shown, sep="\n")
    try:
        print(captured.get(), end="")
    except UnicodeEncodeError:  # a terminal or a pipe that takes ASCII only
        print(captured.get().encode("ascii", "replace").decode(), end="")
