"""Tables of what was tried in long runs."""

from collections.abc import Iterable
from statistics import fmean

from research.markdown import markdown
from research.runs import Runs, spread

TWO_FIFTHS = {
    "release_resnet20_sgd": "ResNet-20 (CIFAR-10), ten classes of CIFAR-100, SGD",
    "release_resnet20_adamw": "the same network, other classes, AdamW",
    "release_vgg8_sgd": "VGG (half of CIFAR-100), ten other classes, SGD",
    "release_resnet20_all": "ResNet-20 (CIFAR-10), all of CIFAR-100, 7,810 steps, SGD",
}
"""Cases on which that was tried, 1,488 steps each but the last; no held-out network is among them."""


def two_fifths(runs: Runs) -> str:
    """What becomes of a prefix that was frozen from the start, after two fifths of the run."""
    lines = []
    for case, name in TWO_FIFTHS.items():
        seeds = len(runs.points(case, "asked"))
        cells = [
            f"{spread(points, 1, True)} at {spread(runs.flops(case, run))}" if points else "–"
            for run in ("released", "kept", "asked")
            for points in [runs.points(case, run)]
        ]
        lines.append([name, str(seeds), *cells])
    return markdown(["", "seeds", "all of it trains again", "all of it stays", "by p(safe)"], lines)


LONG = {
    "release_resnet20_half": "ResNet-20, half of CIFAR-100, 3,905 steps",
    "release_resnet20_all": "ResNet-20, all of CIFAR-100, 7,810 steps",
    "resnet32_paper_length": "ResNet-32, all of CIFAR-100, 7,810 steps",
    "efficientnet_all": "EfficientNet-Lite0, all of CIFAR-100, 3,124 steps",
}
"""Runs of thousands of steps; the ResNet-20 is not held out."""

RULES = {
    "the default": [("smart", ""), ("asked", "")],
    "half frozen by hand": [("static", "")],
    "half in every fourth step": [("every_fourth", "")],
    "… at twice the rate": [("every_fourth_x2", "")],
    "two standard errors": [("smart", "a bound of 2")],
    "… and 0.75 later": [("smart", "a bound of 2, p(safe) 0.75")],
    "third stage alone": [("later_alone", "")],
    "… from 0.75": [("later_alone", "p(safe) 0.75")],
    "… at averages": [("later_alone", "averages")],
    "… from 0.75, at averages": [("later_alone", "p(safe) 0.75, averages")],
}
"""What was tried on these: method and variant."""


def long_runs(runs: Runs) -> str:
    """What is frozen from the start, and at which p(safe) later, in runs of thousands of steps."""
    lines = []
    for name, tried in RULES.items():
        cells = []
        for case in LONG:
            full = runs.full(case)
            rows = [row for run, variant in tried for row in runs.of(case, run, variant=variant)]
            points = [100 * (row["value"] - full[row["seed"]]["value"]) for row in rows]
            pairs = [(row.get("loss"), full[row["seed"]].get("loss")) for row in rows]
            losses = [own - whole for own, whole in pairs if own is not None and whole is not None]
            loss = f", loss {fmean(losses):+.3f}," if losses else ""
            cost = spread([row["flops"] for row in rows])
            cells.append(f"{spread(points, 1, True)}{loss} at {cost} ({len(rows)})" if rows else "–")
        lines.append([name, *cells])
    return markdown(["points at FLOPs (seeds)", *LONG.values()], lines)


REFITTED = ("case", "seeds", "fitted to 21 runs", "to 41, as it ships")


def refitted(runs: Runs, cases: Iterable[str]) -> list[list[str]]:
    """The default with an earlier fit of its third stage and as it ships, in the same seeds, where they differ."""
    lines = []
    for case in cases:
        now, full = runs.of(case, "smart"), runs.full(case)
        earlier = {row["seed"]: row for row in runs.of(case, "smart", variant="fit to 21 runs")}
        cells = []
        for rows in ([earlier.get(row["seed"], row) for row in now], now):
            points = [100 * (row["value"] - full[row["seed"]]["value"]) for row in rows]
            cells.append(f"{spread(points, 1, True)} at {spread([row['flops'] for row in rows])}")
        lines += [[f"`{case}`", str(len(now)), *cells]] if earlier else []
    return lines


def lengths(runs: Runs) -> str:
    """FLOPs of the default in runs of nearly the same length, a seed each."""
    lines = []
    for steps in (900, 999, 1001, 1100):
        rows = runs.of("lengths", f"steps_{steps}")
        lines.append([f"{steps:,}", *(f"{row['flops']:.2f}" for row in rows), f"{fmean(r['flops'] for r in rows):.2f}"])
    return markdown(["steps", "seed 1", "seed 2", "seed 3", "mean"], lines)
