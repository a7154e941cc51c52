"""The pictures of a benchmark, each drawn from what its runs recorded."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors import safe_open

from smartfrz_lightning.benchmark.frontier import frontier_of
from smartfrz_lightning.benchmark.results import Result, cost, find_result
from smartfrz_lightning.benchmark.spec import Benchmark
from smartfrz_lightning.benchmark.table import Row, margin
from smartfrz_lightning.history.recording import Recording

_MARKS = "os^vDP*X<>hd8p"


def draw_pictures(benchmark: Benchmark, results: Sequence[Result], rows: Sequence[Row]) -> list[Path]:
    """Draw all pictures that the results allow into the output folder.

    Returns:
        The files: ``accuracy_cost.png``, ``freezing.png``, ``step_cost.png``, ``moments.png`` and, where the benchmark
        recorded a run, ``cka.png`` and ``gradient.png``.
    """
    output, seed = Path(benchmark.output), benchmark.seeds[0]
    runs = [r for m in benchmark.methods if (r := find_result(list(results), m, seed)) is not None]
    froze = [run for run in runs if run["timeline"]["events"]]
    pictures = {"accuracy_cost.png": _accuracy_cost(results, rows, benchmark)}
    if froze:
        pictures["freezing.png"] = _freezing(froze)
        pictures["step_cost.png"] = _step_cost([r for r in froze if r["timeline"]["states"]])
        pictures["moments.png"] = _moments(froze)
    recorded = benchmark.folder("recording", seed)
    if (recorded / "recording.safetensors").exists():
        pictures["cka.png"] = _cka(Recording.load(recorded / "recording.safetensors"))
    if (recorded / "gradient.safetensors").exists():
        pictures["gradient.png"] = _gradient(recorded / "gradient.safetensors")
    for name, figure in pictures.items():
        figure.savefig(output / name, dpi=130)
    return [output / name for name in pictures]


def _accuracy_cost(results: Sequence[Result], rows: Sequence[Row], benchmark: Benchmark) -> Figure:
    """Mean and standard deviation of the metric against FLOPs and against seconds, one mark a method.

    The band is the frontier, mean and 95 % interval over the seeds of what training everything for less time reaches:
    what lies below it, a user has more cheaply by training less. Without shortened runs of the benchmark's own, a
    dashed line joins those that were shortened to other methods.
    """
    shown = [by for by in ("flops", "seconds") if not all(math.isnan(cost(result, by)) for result in results)]
    figure = Figure(figsize=(2 + 5 * len(shown), 5), layout="constrained")
    for axes, by in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        points = {}
        for number, row in enumerate(rows):
            own = [result for result in results if result["run"] == row.method]
            pairs = [(r, find_result(list(results), benchmark.baseline, r["seed"])) for r in own]
            costs = torch.tensor([cost(r, by) / cost(full, by) for r, full in pairs if full is not None])
            values = 100 * torch.tensor([result["value"] for result in own])
            points[row.method] = float(costs.mean()), float(values.mean())
            spread = {"xerr": costs.std(), "yerr": values.std()} if len(own) > 1 and len(costs) > 1 else {}
            if row.method in benchmark.shortened:  # of which the line is made
                axes.errorbar(*points[row.method], **spread, fmt=".", color="grey", markersize=8, capsize=2)
                continue
            color = 2 * number % 20 + number // 10 % 2  # the ten strong colours first
            mark = {"fmt": _MARKS[number % len(_MARKS)], "color": colormaps["tab20"](color)}
            # Smaller ones above larger ones, where two methods do the same.
            size = 11 - 5 * number / max(1, len(rows))
            axes.errorbar(*points[row.method], **spread, **mark, markersize=size, capsize=2, label=row.method)
        if not _draw_frontier(axes, results, benchmark, by):
            names = [benchmark.baseline, *(name for name, run in benchmark.methods.items() if run.shorten_to)]
            line = sorted(points[name] for name in names if name in points)
            if len(line) > 1:
                label = "training everything, shorter"
                axes.plot(*zip(*line, strict=True), color="grey", linestyle="--", zorder=0, label=label)
        axes.set_xlabel(f"training {'FLOPs' if by == 'flops' else 'time'} relative to {benchmark.baseline}")
        axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.axes[0].set_ylabel(f"{benchmark.metric}, %")
    return figure


def _draw_frontier(axes: Axes, results: Sequence[Result], benchmark: Benchmark, by: str) -> bool:
    every = [frontier_of(results, benchmark.baseline, benchmark.shortened, seed, by) for seed in benchmark.seeds]
    known = [frontier for frontier in every if frontier is not None]
    if not known:
        return False
    low = max(frontier.costs[0] for frontier in known)
    costs = [low + (1 - low) * part / 99 for part in range(100)]
    curves = [[100 * (frontier.at(at) or 0.0) for at in costs] for frontier in known]
    mean = [statistics.fmean(at) for at in zip(*curves, strict=True)]
    axes.plot(costs, mean, color="grey", zorder=0, label="training everything, shorter")
    if len(known) > 2:
        limits = axes.get_ylim()
        half = [margin(list(at)) for at in zip(*curves, strict=True)]
        below, above = ([m + sign * h for m, h in zip(mean, half, strict=True)] for sign in (-1, 1))
        axes.fill_between(costs, below, above, color="grey", alpha=0.25, zorder=0, linewidth=0)
        axes.set_ylim(limits)  # of the runs: a band of few seeds is wide
    return True


def _freezing(runs: Sequence[Result]) -> Figure:
    """What froze when: one panel a method, layers in forward order against steps."""
    columns = min(4, len(runs))
    lines = -(-len(runs) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, run in zip(panels, runs, strict=False):
        steps, events = run["timeline"]["steps"], _froze_last(run["timeline"]["events"])
        for number, layer in enumerate(run["timeline"]["layers"]):
            end = events.get(layer["name"], steps)
            axes.barh(number, end, color="tab:orange", height=1)
            axes.barh(number, steps - end, left=end, color="tab:blue", height=1)
        axes.invert_yaxis()
        axes.set_title(run["run"], fontsize=9)
    for axes in panels[len(runs) :]:
        axes.axis("off")
    figure.supxlabel("optimizer step (orange: trains, blue: frozen)", fontsize=9)
    figure.supylabel("layer, in forward order", fontsize=9)
    return figure


def _step_cost(runs: Sequence[Result]) -> Figure:
    """FLOPs of a step against steps."""
    figure, axes = _one_panel("optimizer step", "FLOPs of a step, relative")
    for number, run in enumerate(runs):
        states, steps = run["timeline"]["states"], run["timeline"]["steps"]
        at = [state["step"] for state in states] + [steps]
        values = [sum(state["flops"].values()) / sum(states[0]["flops"].values()) for state in states]
        line = ["-", "--", ":", "-."][number // 10]
        axes.step(at, [*values, values[-1]], where="post", linestyle=line, label=run["run"])
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _moments(runs: Sequence[Result]) -> Figure:
    """When each layer froze, all methods in one (Fig. 5b)."""
    figure, axes = _one_panel("layer, in forward order", "epoch at which it froze")
    for number, run in enumerate(runs):
        order = {layer["name"]: place for place, layer in enumerate(run["timeline"]["layers"])}
        froze = [event for event in run["timeline"]["events"] if event.get("kind", "freeze") == "freeze"]
        events = sorted(froze, key=lambda event: order[event["layer"]])
        mark = _MARKS[number % len(_MARKS)]
        places = [order[event["layer"]] for event in events]
        axes.plot(places, [event["epoch"] for event in events], mark, label=run["run"], alpha=0.8)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _froze_last(events: Sequence[dict[str, Any]]) -> dict[str, int]:
    """When each layer froze that is frozen at the end."""
    last = {event["layer"]: event for event in events}
    return {name: event["step"] for name, event in last.items() if event.get("kind", "freeze") == "freeze"}


def _cka(recording: Recording) -> Figure:
    """CKA to the finished model of up to six layers, evenly spread over the depth (Fig. 4)."""
    figure, axes = _one_panel("epoch", "CKA to the finished model")
    count = len(recording.layers)
    for number in sorted({round(place * (count - 1) / 5) for place in range(6)}):
        axes.plot(recording.check_epoch, recording.cka[:, number], label=f"{number}: {recording.layers[number]}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    return figure


def _gradient(path: Path) -> Figure:
    """Distribution of a gradient, in full and sampled (Fig. 3)."""
    with safe_open(path, "pt") as file:
        about, full, sample = file.metadata(), file.get_tensor("gradient"), file.get_tensor("sample")
    figure, axes = _one_panel(f"gradient of {about['weight']} at step {about['step']}", "density")
    low, high = torch.quantile(full[torch.randperm(len(full))[:100_000]], torch.tensor([0.002, 0.998])).tolist()
    for values, label in ((full, f"all {len(full):,} values"), (sample, f"{len(sample):,} sampled")):
        axes.hist(values.numpy(), bins=60, range=(low, high), density=True, alpha=0.5, label=label)
    axes.legend(frameon=False)
    return figure


def _one_panel(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes
