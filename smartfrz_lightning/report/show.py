"""Show a freezing timeline: a table for the terminal, and a picture."""

from pathlib import Path
from typing import IO, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from smartfrz_lightning.freezing.cache_use import ENDED, CacheUse
from smartfrz_lightning.report.timeline import Look, Start, Timeline

_PINNED = {
    "output": "output: leads to the loss, always trains",
    "excluded": "excluded: always trains",
    "unused": "unused: not seen in the forward pass",
    "thawed": "thawed: your code set requires_grad on it after it had frozen, left alone since",
}


def timeline_table(timeline: Timeline, title: str = "Freezing") -> Group:
    """Which layer froze when, what it saved, and what the callback cost.

    Example:
        >>> from smartfrz_lightning.report.show import timeline_table
        >>> from smartfrz_lightning.report.timeline import Timeline
        >>> print(timeline_table(Timeline()).renderables[-1])
        0 of 0 layers frozen, 0.0% of training FLOPs saved
        callback's hooks: 0.00 s of 0.0 s in fit (0.0%)
        Freezing saved nothing: no training step was completed, so no layer was found.
    """
    layers = _layer_table(timeline, title)
    flops = Table(title="Training FLOPs", box=SIMPLE_HEAD)
    for column in ("", "done", "training everything", "saved"):
        flops.add_column(column, justify="left" if not column else "right")
    for name in ("forward", "weight_gradient", "activation_gradient", "total"):
        done, full = getattr(timeline.spent, name), getattr(timeline.full, name)
        share = f"{1 - done / full:.1%}" if full else "–"
        flops.add_row(name.replace("_", " "), f"{done:.3e}", f"{full:.3e}", share)
    lines = [
        f"{len(timeline.frozen)} of {len(timeline.layers)} layers frozen, {timeline.saved:.1%} of training FLOPs saved",
        f"callback's hooks: {timeline.callback_seconds:.2f} s of {timeline.fit_seconds:.1f} s in fit "
        f"({timeline.overhead:.1%})",
    ]
    if timeline.compilations:
        after = [entry for entry in timeline.compilations if entry.frozen]
        lines.append(
            f"torch.compile: {sum(entry.count for entry in timeline.compilations)} compilations in "
            f"{sum(entry.seconds for entry in timeline.compilations):.1f} s, {sum(entry.count for entry in after)} of "
            f"them after freezing in {sum(entry.seconds for entry in after):.1f} s"
        )
    if timeline.start:
        lines.append(start_line(timeline.start))
    if timeline.look:
        lines.append(look_line(timeline.look))
    if let_go := let_go_line(timeline):
        lines.append(let_go)
    if timeline.cache:
        lines.append(cache_line(timeline.cache))
    elif (share := held_forward(timeline)) > 0.05:
        lines.append(
            f"the forward pass of the held front is {share:.0%} of what a step still costs: where samples come again "
            "as they are, cache_front=True saves that too"
        )
    if why := nothing_saved(timeline):
        lines.append(f"Freezing saved nothing: {why}")
    return Group(layers, flops, Text("\n".join(lines)))


def _layer_table(timeline: Timeline, title: str) -> Table:
    """As narrow as can be: names of layers are long."""
    pinned = {layer.pinned for layer in timeline.layers}
    with_confidence = any(event.confidence is not None for event in timeline.events)
    about = "\n".join(text for reason, text in _PINNED.items() if reason in pinned)
    table = Table(
        title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=about, caption_justify="left"
    )
    columns = ["#", "layer", "parameters", "frozen at\nstep", "epoch", *["confi-\ndence"] * with_confidence]
    for column in columns:
        table.add_column(column, justify="left" if column == "layer" else "right", overflow="fold")
    for index, layer in enumerate(timeline.layers):
        periods = timeline.periods(layer.name)
        when = [layer.pinned or (f"{periods[-1][0]} to {periods[-1][1]}" if periods else "–"), "–", ""]
        if event := timeline.event_of(layer.name):
            sure = "" if event.confidence is None else f"{event.confidence:.2f}"
            when = [str(event.step), f"{event.epoch:.2f}", sure]
        table.add_row(str(index), layer.name, f"{layer.size:,}", *when[: len(columns) - 3])
    return table


def start_line(start: Start) -> str:
    """What a probe at the start said, and what was decided.

    Example:
        >>> from smartfrz_lightning.report.show import start_line
        >>> from smartfrz_lightning.report.timeline import Start
        >>> start_line(Start(4, {"stem": 0.01, "block": 0.02}, {"stem": 0.95, "block": 0.7}, ["stem"]))
        'probe of 4 steps: 1 of 2 layers held from the start, which does no harm with a likelihood of 95 %'
        >>> start_line(Start(4, {"stem": 0.01, "block": 0.02}, {"stem": 0.5, "block": 0.3}, []))
        'probe of 4 steps: nothing held; the first layer alone would do no harm with a likelihood of 50 %'
        >>> start_line(Start(4, {"stem": 0.01, "block": 0.02}, {"stem": 0.9, "block": 0.8}, [], ["stem", "block"]))
        'probe of 4 steps: nothing held, as no layer that trains has been trained before'
    """
    line = f"probe of {start.steps} step{'s' * (start.steps != 1)}: "
    if not start.sure:
        return f"{line}too short a run or too few layers to tell anything; nothing held"
    if not start.held and len(start.untrained) == len(start.sure):
        return f"{line}nothing held, as no layer that trains has been trained before"
    if not start.held:
        first = next(iter(start.sure.values()))
        return f"{line}nothing held; the first layer alone would do no harm with a likelihood of {100 * first:.0f} %"
    sure, layers = start.sure[start.held[-1]], len(start.sure)
    random, rest = len(set(start.untrained) & set(start.held)), len(set(start.untrained) - set(start.held))
    new = f"; {random} of these are random, as they were made" if random else ""
    new += f"; {rest} before the head are new, and train" if rest else ""
    return (
        f"{line}{len(start.held)} of {layers} layers held from the start, which does no harm with a likelihood of "
        f"{100 * sure:.0f} %{new}"
    )


def look_line(look: Look) -> str:
    """What a second look at the held front saw, and what was decided.

    Example:
        >>> from smartfrz_lightning.report.show import look_line
        >>> from smartfrz_lightning.report.timeline import Look
        >>> look_line(Look(step=50, steps=25, gain=-0.02, error=0.01, stays=12, released=0))
        'second look, steps 50 to 75: a copy that trained everything had a loss 0.02 ± 0.01 higher: the front stays'
        >>> look_line(Look(step=50, steps=25, gain=-0.02, error=0.02, stays=8, released=4)).rpartition(": ")[2]
        'the first 8 of 12 layers stay'
        >>> look_line(Look(step=50, steps=25, gain=0.1, error=0.02, stays=0, released=12))
        'second look, steps 50 to 75: a copy that trained everything had a loss 0.1 ± 0.02 lower: it took over'
    """
    side, so = "lower" if look.gain > 0 else "higher", "the front stays"
    if look.released:
        so = f"the first {look.stays} of {look.stays + look.released} layers stay" if look.stays else "it took over"
    return (
        f"second look, steps {look.step} to {look.step + look.steps}: a copy that trained everything had a loss "
        f"{abs(look.gain):.2g} ± {look.error:.2g} {side}: {so}"
    )


def let_go_line(timeline: Timeline) -> str:
    """When a front that was held from the start began to train, other than by what a second look saw.

    Example:
        >>> from smartfrz_lightning.report.show import let_go_line
        >>> from smartfrz_lightning.report.timeline import FreezeEvent, Start, Timeline
        >>> start = Start(30, {"stem": 0.01}, {"stem": 0.95}, ["stem"])
        >>> events = [FreezeEvent("stem", 30, 0.1, 0.95), FreezeEvent("stem", 600, 2.0, None, "thaw")]
        >>> let_go_line(Timeline(start=start, events=events))
        'the front was held for 600 steps, and trained after that'
        >>> let_go_line(Timeline(start=start, events=events[:1]))
        ''
    """
    held = timeline.start.held if timeline.start else ()
    looked = timeline.look.step + timeline.look.steps if timeline.look else None
    steps = [event.step for event in timeline.events if event.kind == "thaw" and event.layer in held]
    let_go = [step for step in steps if step != looked]
    trains = bool(let_go) and not set(held) & set(timeline.frozen)
    return f"the front was held for {max(let_go)} steps, and trained after that" if trains else ""


def held_forward(timeline: Timeline) -> float:
    """Share of what a step costs now that is the forward pass of a front that is held from the start, 0 to 1.

    Example:
        >>> from smartfrz_lightning.report.show import held_forward
        >>> from smartfrz_lightning.report.timeline import Timeline
        >>> held_forward(Timeline())
        0.0
    """
    held = set(timeline.start.held if timeline.start else ()) & set(timeline.frozen)
    if not held or not timeline.states:
        return 0.0
    front = sum(cost.own + cost.following for cost in timeline.costs if cost.layer in held)
    first, now = timeline.states[0].flops, timeline.states[-1].flops
    return front / first.forward * now.forward / now.total if first.forward and now.total else 0.0


def cache_line(use: CacheUse) -> str:
    """What the cache of the frozen front did.

    Example:
        >>> from smartfrz_lightning.freezing.cache_use import CacheUse
        >>> from smartfrz_lightning.report.show import cache_line
        >>> cache_line(CacheUse(hits=300, misses=100, gigabytes=0.25, seconds=12.0))
        'front cache: not run for 300 of 400 samples, 12.0 s saved, 0.25 GB kept at most'
    """
    line = f"front cache: not run for {use.hits:,} of {use.hits + use.misses:,} samples, {use.seconds:.1f} s saved, "
    line += f"{use.gigabytes:.2f} GB kept at most"
    if use.rounding:
        line += f", rounded by {use.rounding:.1e} of the largest value at most"
    if use.ends:
        line += f"; it ends before {use.ends}"
    return line if use.stopped in ("", ENDED) else f"{line}; switched off: {use.stopped}"


def nothing_saved(timeline: Timeline) -> str:
    """Why freezing saved nothing; empty if it saved something.

    Example:
        >>> from smartfrz_lightning.layers.layer import Layer
        >>> from smartfrz_lightning.report.show import nothing_saved
        >>> from smartfrz_lightning.report.timeline import Timeline
        >>> layers = [Layer("0", (), (), (), 8, "excluded"), Layer("1", (), (), (), 8, "output")]
        >>> nothing_saved(Timeline(layers, steps=10))
        'every layer is excluded, unused or leads to the loss.'
    """
    if timeline.saved > 0:
        return ""
    if not timeline.layers:
        return "no training step was completed, so no layer was found."
    if timeline.beside:
        came_back = "the front that was held came back, and" if not timeline.frozen else ""
        return (
            f"{came_back} the second look cost more than holding the front saved. On this task train everything, "
            "without this callback."
        ).strip()
    free = [layer for layer in timeline.layers if not layer.pinned]
    if not free:
        return "every layer is excluded, unused or leads to the loss."
    if not timeline.events and timeline.start:
        return "the run was one without this callback, but for the probe."
    if not timeline.events:
        return (
            f"no check found one of the {len(free)} layers ready in {timeline.steps} steps. Train longer, check more "
            "often (every_n_train_steps), or let the method freeze more readily."
        )
    return "the layers froze too late: no training step came after."


def plot_timeline(timeline: Timeline, path: str | Path | IO[bytes]) -> None:
    """Draw layers against steps: when each trained and when it was frozen, as a picture file.

    Beside it, if there was a probe: how much each layer wanted to move, and how likely a front that ends there does no
    harm.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from smartfrz_lightning.layers.layer import Layer
        >>> from smartfrz_lightning.report.show import plot_timeline
        >>> from smartfrz_lightning.report.timeline import FreezeEvent, Timeline
        >>> layers = [Layer("0", (), (), (), 8), Layer("1", (), (), (), 8)]
        >>> timeline = Timeline(layers, [FreezeEvent("0", 4, 1, 0.9)], steps=10)
        >>> with TemporaryDirectory() as folder:
        ...     plot_timeline(timeline, f"{folder}/timeline.png")
        ...     Path(folder, "timeline.png").read_bytes()[1:4]
        b'PNG'
    """
    from matplotlib.figure import Figure

    layers, steps = timeline.layers, max(1, timeline.steps)
    longest = max((len(layer.name) for layer in layers), default=0)
    beside = 2.2 if timeline.start and any(timeline.start.profile.values()) else 0.0
    width, height = 8.0 + beside, max(2.5, 0.18 * len(layers) + 1.2)
    figure = Figure(figsize=(width, height))
    # Margins by what stands in them: measuring all texts for a layout takes longer than drawing.
    left = min(0.5, (0.065 * longest + 0.45) / width)
    right = 1 - (1.12 + beside) / width
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
    if beside and timeline.start:
        place = (right + 1.12 / width, 0.55 / height, (beside - 0.15) / width, 1 - 0.95 / height)
        _plot_profile(timeline.start, [layer.name for layer in layers], figure.add_axes(place, sharey=axes))
    figure.savefig(path, dpi=130)


def _plot_profile(start: Start, names: list[str], axes: Any) -> None:
    held = set(start.held)
    for index, name in enumerate(names):
        if value := start.profile.get(name):
            axes.barh(index, value, color="tab:blue" if name in held else "tab:orange")
    axes.tick_params(labelleft=False, labelsize=7)
    axes.set_xlabel("gradient / weights", fontsize=8)
    likely = axes.twiny()
    numbers = [index for index, name in enumerate(names) if name in start.sure]
    likely.plot(list(start.sure.values()), numbers, color="black", marker=".", linewidth=1)
    likely.set_xlim(0, 1)
    likely.tick_params(labelsize=7)
    likely.set_xlabel("likelihood of no harm if held up to here (line)", fontsize=7)
