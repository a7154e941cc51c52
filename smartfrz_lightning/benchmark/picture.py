"""The picture of a benchmark: accuracy against cost."""

import statistics
from collections.abc import Sequence

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smartfrz_lightning.benchmark.frontier import frontier_of
from smartfrz_lightning.benchmark.results import Result, cost, find_result
from smartfrz_lightning.benchmark.spec import Benchmark
from smartfrz_lightning.benchmark.table import margin

_MARKS = "os^vDP*X<>hd8p"


def accuracy_cost(results: Sequence[Result], benchmark: Benchmark) -> Figure:
    """Mean and standard deviation of the metric against FLOPs and against seconds, one mark a method.

    The band is the frontier, mean and 95 % interval over the seeds of what training everything for less time reaches:
    what lies below it, a user has more cheaply by training less.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    methods = [method for method in benchmark.methods if any(result["run"] == method for result in results)]
    for axes, by in zip(figure.subplots(1, 2, sharey=True), ("flops", "seconds"), strict=True):
        for number, method in enumerate(methods):
            own = [result for result in results if result["run"] == method]
            pairs = [(r, find_result(list(results), benchmark.baseline, r["seed"])) for r in own]
            costs = torch.tensor([cost(r, by) / cost(full, by) for r, full in pairs if full is not None])
            values = 100 * torch.tensor([result["value"] for result in own])
            point = float(costs.mean()), float(values.mean())
            spread = {"xerr": costs.std(), "yerr": values.std()} if len(own) > 1 and len(costs) > 1 else {}
            if method in benchmark.shortened:  # of which the line is made
                axes.errorbar(*point, **spread, fmt=".", color="grey", markersize=8, capsize=2)
                continue
            color = 2 * number % 20 + number // 10 % 2  # the ten strong colours first
            mark = {"fmt": _MARKS[number % len(_MARKS)], "color": colormaps["tab20"](color)}
            # Smaller ones above larger ones, where two methods do the same.
            size = 11 - 5 * number / len(methods)
            axes.errorbar(*point, **spread, **mark, markersize=size, capsize=2, label=method)
        _draw_frontier(axes, results, benchmark, by)
        axes.set_xlabel(f"training {'FLOPs' if by == 'flops' else 'time'} relative to {benchmark.baseline}")
        axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.axes[0].set_ylabel(f"{benchmark.metric}, %")
    return figure


def _draw_frontier(axes: Axes, results: Sequence[Result], benchmark: Benchmark, by: str) -> None:
    every = [frontier_of(results, benchmark.baseline, benchmark.shortened, seed, by) for seed in benchmark.seeds]
    known = [frontier for frontier in every if frontier is not None]
    if not known:
        return
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
