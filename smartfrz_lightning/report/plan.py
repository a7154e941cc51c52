"""Show what freezing each prefix would save: a table for the terminal, and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

EXPECTED_LOSS = 0.3
"""Training loss relative to that of the start for which a plan says from when on a prefix is safe."""


@dataclass(frozen=True)
class PlannedPrefix:
    """A prefix that may be frozen from the start.

    Attributes:
        layers: How many layers it has; 0 is full training.
        of: How many may freeze.
        last: Name of its last layer.
        parameters: Its share of all parameters.
        flops: FLOPs of a step relative to full training.
        seconds: Measured time of a step.
        time: The same relative to full training.
        memory: Peak memory of a step in GB, where the device tells.
        safe: p(safe) of freezing it from the start to the end; ``None`` if that is not known.
        later: Share of the run from which the default would freeze it for good, if the training loss is by then
            ``EXPECTED_LOSS`` of that of the start; ``None`` if never.
        default: Whether the default freezes it at the start.
    """

    layers: int
    of: int
    last: str
    parameters: float
    flops: float
    seconds: float
    time: float
    memory: float | None
    safe: float | None
    later: float | None
    default: bool


def plan_table(
    plan: Sequence[PlannedPrefix], title: str, steps: int, notes: Sequence[str], exclude: Sequence[str] = ()
) -> Group:
    """What was measured, and the line that does it by hand."""
    with_memory = any(prefix.memory for prefix in plan)
    table = Table(title=f"Freezing a prefix of {title} from the start", box=SIMPLE_HEAD, pad_edge=False)
    columns = ["layers", "up to", "parameters", "FLOPs", "time", "ms", *["GB"] * with_memory, "p(safe)", "later"]
    for column in columns:
        table.add_column(column, justify="left" if column == "up to" else "right", overflow="fold")
    for one in plan:
        row = [
            f"{'→ ' if one.default else ''}{one.layers}",
            one.last or "(full training)",
            f"{one.parameters:.0%}",
            f"{one.flops:.2f}",
            f"{one.time:.2f}",
            f"{1000 * one.seconds:.0f}",
            *([f"{one.memory or 0:.2f}"] if with_memory else []),
            "–" if one.safe is None else f"{one.safe:.2f}",
            "–" if one.later is None else f"{one.later:.0%}",
        ]
        table.add_row(*row, style="bold" if one.default else None)
    lines = [
        "parameters: the share that is frozen; FLOPs, time: of a step, relative to full training; p(safe): how likely "
        "freezing from the first step to the last costs at most 2 points; later: the share of the run from which it "
        f"would freeze for good, if the training loss has fallen to {EXPECTED_LOSS:g} by then. {steps} steps taken.",
        *(f"SmartFreezeCallback(): {note}" for note in notes),
    ]
    less = f", exclude={list(exclude)}" if exclude else ""
    lines += [f"by hand: StaticFreezeCallback(layers={one.layers}{less})" for one in plan if one.default]
    return Group(table, Text("\n".join(lines)))


def plot_plan(plan: Sequence[PlannedPrefix], path: str | Path) -> None:
    """Draw FLOPs, time and p(safe) against the depth of the prefix, as a picture file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    depth = [one.layers / max(1, one.of) for one in plan]
    axes.plot(depth, [one.flops for one in plan], "o-", color="tab:blue", label="FLOPs of a step")
    axes.plot(depth, [one.time for one in plan], "s-", color="tab:orange", label="time of a step")
    known = [(at, one.safe) for at, one in zip(depth, plan, strict=True) if one.safe is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "^--", color="tab:green", label="p(safe)")
    for at, one in zip(depth, plan, strict=True):
        if one.default:
            axes.axvline(at, color="0.6", linestyle=":", label="the default")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, max(1.05, *(one.time for one in plan)))
    axes.set_xlabel("share of the layers that is frozen from the start")
    axes.set_ylabel("relative to full training")
    axes.legend(frameon=False, loc="lower left")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
