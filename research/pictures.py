"""The pictures of README and documentation, made of the published runs and the shipped predictors.

python -m research.pictures docs/images
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from jsonargparse import auto_cli

from research.runs import Runs
from research.tables import CASES, shown_methods
from smartfrz_lightning.predictor.later import LaterPredictor, later_inputs
from smartfrz_lightning.stages.later import EARLIEST
from smartfrz_lightning.stages.start import DEEPEST

LOSSES = (0.6, 0.3, 0.1)
"""Training losses, relative to that of the start, for which the later predictor is drawn."""


def later(path: Path) -> None:
    """p(safe) by depth and progress, a panel a training loss; what the stage never freezes is grey."""
    predictor, layers, progress = LaterPredictor.load(), 100, torch.linspace(0.01, 0.99, 99)
    figure, axes = plt.subplots(1, len(LOSSES), figsize=(9, 3), sharey=True, layout="constrained")
    for axis, loss in zip(axes, LOSSES, strict=True):
        with torch.no_grad():
            columns = [
                predictor(later_inputs(layers, float(share), loss)).cummin(0).values.sigmoid() for share in progress
            ]
        shares = [(number + 1) / layers for number in range(layers)]
        drawn = axis.contourf(
            progress, shares, torch.stack(columns, 1), levels=[0, 0.25, 0.5, 0.7, 0.85, 1], cmap="YlGn"
        )
        axis.fill_between([0, EARLIEST], 0, 1, color="0.85")
        axis.fill_between([EARLIEST, 1], DEEPEST, 1, color="0.85")
        axis.set(title=f"loss at {loss:g} of the start's", xlabel="share of the run done", xlim=(0, 1), ylim=(0, 1))
    axes[0].set_ylabel("depth of the prefix")
    figure.colorbar(drawn, label="p(safe)")
    figure.savefig(path, dpi=130)


def verify(path: Path, rows: Path = Path("research/results/second_look.jsonl")) -> None:
    """What freezing a prefix to the end came to, against what the trial of it showed, in recorded runs."""
    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for shifted, color, name in ((False, "tab:blue", "new classes"), (True, "tab:orange", "images shifted")):
        told = [
            (max(-8.0, min(8.0, front["gain"] / front["error"])), front["accuracy"] - row["full"])
            for row in map(json.loads, rows.read_text().splitlines())
            for front in row["fronts"]
            if (row["case"]["shift"] != "none") == shifted and front["gain"] is not None and front["error"]
        ]
        axis.scatter(*zip(*told, strict=True), s=12, alpha=0.6, color=color, label=name)
    axis.axvline(-0.5, color="0.6", lw=1, ls="--")
    how = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right", "fontsize": 8}
    axis.annotate("the prefix\nstays", (-0.5, 1), xytext=(-6, -24), **how)
    axis.axhline(0, color="0.6", lw=1)
    axis.set(
        xlabel="trial: loss with the prefix frozen, minus without, in standard errors", ylabel="points if it stays"
    )
    axis.legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


COLORS = {
    "smart": "tab:green",
    "static": "tab:blue",
    "interval": "tab:orange",
    "unverified": "tab:purple",
    "head_only": "tab:red",
}
NAMES = {
    "smart": "SmartFreezeCallback()",
    "static": "half of the layers frozen by hand",
    "interval": "IntervalFreezeCallback(0.3)",
    "unverified": "SmartFreezeCallback(verify=False)",
    "head_only": "all but the head frozen by hand",
}


HEADLINE = ("resnet32_paper_length", "efficientnet_all_long", "efficientnet_tuned", "resnet32_inverted_short")
"""The two longest of their networks, a short one, and the one in which the default loses most."""


def headline(path: Path) -> None:
    """Four cases in a row."""
    _panels(path, HEADLINE, len(HEADLINE))


def rivals(path: Path) -> None:
    """A panel a case in which full training was shortened too, by three seeds or more."""
    runs = Runs()
    cases = [
        case
        for case in CASES
        if case != "efficientnet_short"  # shown with recipes from a grid
        and any(
            method.startswith("full_") and len(runs.points(case, method)) > 2 for method in shown_methods(runs, case)
        )
    ]
    _panels(path, cases, 3)


def _panels(path: Path, cases: Sequence[str], columns: int) -> None:
    """Points against time, or FLOPs where that is not known."""
    runs, rows = Runs(), math.ceil(len(cases) / columns)
    size = (3.6 * columns, 3.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, case in zip(axes.flat, cases, strict=False):
        draw(axis, runs, case)
    for axis in axes[:, 0]:
        axis.set_ylabel("points against full training")
    for axis in axes.flat[len(cases) :]:
        axis.set_axis_off()
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw(axis: plt.Axes, runs: Runs, case: str) -> None:
    """One case: each method's mean, its standard deviation as bars, shortened full training as a line with a band.

    Against the FLOPs where the time of the default or of a shortened run is not known.
    """
    shortened = [(1.0, 0.0, 0.0)]
    axis.axhline(0, color="0.8", lw=1)
    shown = [method for method in shown_methods(runs, case) if method in NAMES or method.startswith("full_")]
    timed = all(runs.time(case, method) for method in shown if method == "smart" or method.startswith("full_"))
    shown = [method for method in shown if not timed or runs.time(case, method)]
    for method in shown:
        points, cost = runs.points(case, method), (runs.time if timed else runs.flops)(case, method)
        at, gain = statistics.fmean(cost), statistics.fmean(points)
        errors = {"yerr": statistics.stdev(points), "xerr": statistics.stdev(cost)} if len(cost) > 1 else {}
        if method.startswith("full_"):
            shortened.append((at, gain, errors.get("yerr", 0.0)))
            axis.plot(at, gain, "o", color="0.6", ms=4)
        else:
            size = 8 if method == "smart" else 5
            shape = "D" if method == "smart" else "s"
            axis.errorbar(at, gain, **errors, fmt=shape, color=COLORS[method], ms=size, lw=1, label=NAMES[method])
    at, gain, error = map(torch.tensor, zip(*sorted(shortened), strict=True))
    axis.plot(at, gain, color="0.6", lw=1.5, label="everything trains, for fewer steps")
    axis.fill_between(at, gain - error, gain + error, color="0.6", alpha=0.2, lw=0)
    axis.plot(1, 0, "o", color="black", ms=6, label="full training")
    axis.set(xlabel=f"{'time' if timed else 'FLOPs'} / full training")
    axis.set_title(_title(case).replace(", ", ",\n", 1), fontsize=8)
    axis.margins(0.1)


def _title(case: str) -> str:
    """Of a case, whose own name may stand on the one above."""
    names = list(CASES)
    number = names.index(case)
    while number and CASES[names[number]].startswith("the same"):
        number -= 1
    first, rest = CASES[names[number]], CASES[case].removeprefix("the same, ")
    return first if rest == first else f"{first.rpartition(', ')[0]}, {rest}"


def main(folder: str) -> None:
    """Draw all.

    Args:
        folder: Where the pictures go.
    """
    for picture in (later, verify, headline, rivals):
        picture(Path(folder) / f"{picture.__name__}.png")


if __name__ == "__main__":
    auto_cli(main)
