"""Show a freezing timeline: a table for the terminal, and a picture."""

from pathlib import Path
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from smartfrz_lightning.report.timeline import Timeline

_ALWAYS_TRAINS = {
    "output": "output: leads to the loss, always trains",
    "excluded": "excluded: always trains",
    "unused": "unused: not in the first training batch, always trains",
    "thawed": "thawed: your code set requires_grad on it after it had frozen, left alone since",
}


def timeline_table(timeline: Timeline, title: str = "Freezing") -> Group:
    """Which layer froze when, what it saved, and what the callback cost."""
    layers = _layer_table(timeline, title)
    flops = Table(title="Training FLOPs", box=SIMPLE_HEAD)
    for column in ("", "done", "training everything", "saved"):
        flops.add_column(column, justify="left" if not column else "right")
    for name in ("forward", "weight_gradient", "activation_gradient", "total"):
        done, full = getattr(timeline.spent, name), getattr(timeline.full, name)
        share = f"{1 - done / full:.1%}" if full else "–"
        flops.add_row(name.replace("_", " "), f"{done:.3e}", f"{full:.3e}", share)
    lines = [
        f"{len(timeline.frozen)} of {len(timeline.layers)} layers frozen, {timeline.saved:.1%} of training FLOPs saved"
    ]
    if timeline.fit_seconds:  # not known in a loop of the user's own
        hooks = "callback's hooks, trial included" if timeline.repeated else "callback's hooks"
        lines.append(
            f"{hooks}: {timeline.callback_seconds:.2f} s of {timeline.fit_seconds:.1f} s in fit "
            f"({timeline.callback_seconds / timeline.fit_seconds:.1%})"
        )
    lines += timeline.notes
    if timeline.frozen:
        lines.append("frozen layers keep requires_grad=False; thaw() lets them train again")
    if why := nothing_saved(timeline):
        lines.append(f"Freezing saved nothing: {why}")
    return Group(layers, flops, Text("\n".join(lines)))


def _layer_table(timeline: Timeline, title: str) -> Table:
    """As narrow as can be: names of layers are long."""
    always_trains = {layer.always_trains for layer in timeline.layers}
    with_confidence = any(event.confidence is not None for event in timeline.events)
    lines = [text for reason, text in _ALWAYS_TRAINS.items() if reason in always_trains]
    if with_confidence:
        lines.append("confidence: how sure the method was of it; of the default, p(safe) of the prefix up to it")
    about = "\n".join(lines)
    table = Table(
        title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=about, caption_justify="left"
    )
    columns = ["#", "layer", "parameters", "frozen at\nstep", "epoch", *["confi-\ndence"] * with_confidence]
    for column in columns:
        table.add_column(column, justify="left" if column == "layer" else "right", overflow="fold")
    for index, layer in enumerate(timeline.layers):
        periods = timeline.periods(layer.name)
        when = [layer.always_trains or (f"{periods[-1][0]} to {periods[-1][1]}" if periods else "–"), "–", ""]
        if event := timeline.event_of(layer.name):
            confidence = "" if event.confidence is None else f"{event.confidence:.2f}"
            when = [str(event.step), f"{event.epoch:.2f}", confidence]
        table.add_row(str(index), layer.name, f"{layer.size:,}", *when[: len(columns) - 3])
    return table


def nothing_saved(timeline: Timeline) -> str:
    """Why freezing saved nothing; empty if it saved something."""
    if timeline.saved > 0:
        return ""
    if not timeline.layers:
        return "no training step was completed, so no layer was found."
    free = [layer for layer in timeline.layers if not layer.always_trains]
    if not free:
        return "every layer is excluded, unused or leads to the loss."
    if timeline.repeated:
        return f"trying the frozen prefix cost more than was saved in {timeline.steps} steps."
    if not timeline.events and timeline.notes:
        return "nothing was frozen, as said above."
    if not timeline.events:
        return (
            f"no check found one of the {len(free)} layers ready in {timeline.steps} steps. Train longer, or let the "
            "method freeze more readily."
        )
    return "the layers froze too late: no training step came after."


def plot_timeline(timeline: Timeline, path: str | Path | IO[bytes]) -> None:
    """Draw layers against steps: when each trained and when it was frozen, as a picture file."""
    from matplotlib.figure import Figure

    layers, steps = timeline.layers, max(1, timeline.steps)
    longest = max((len(layer.name) for layer in layers), default=0)
    width, height = 8.0, max(2.5, 0.18 * len(layers) + 1.2)
    figure = Figure(figsize=(width, height))
    # Margins by what stands in them: measuring all texts for a layout takes longer than drawing.
    left = min(0.5, (0.065 * longest + 0.45) / width)
    right = 1 - 1.12 / width
    axes = figure.add_axes((left, 0.55 / height, right - left, 1 - 0.95 / height))
    trains, frozen = [], []
    for index, layer in enumerate(layers):
        at = 0
        for start, end in timeline.periods(layer.name):
            trains.append((index, at, start - at))
            at = steps if end is None else end
            frozen.append((index, start, at - start))
        trains.append((index, at, steps - at))
    for bars, color, label in ((trains, "tab:orange", "trains"), (frozen, "tab:blue", "frozen")):
        if bars:
            index, start, length = zip(*bars, strict=True)
            axes.barh(index, length, left=start, color=color, label=label)
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=6)
    axes.set_ylim(max(1, len(layers)) - 0.4, -0.6)
    axes.set_xlim(0, steps)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("layer, in forward order")
    axes.set_title(f"{timeline.saved:.1%} of training FLOPs saved")
    if layers:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=130)
