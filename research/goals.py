"""What the default was to reach, what it does, and the best of all that was run."""

from dataclasses import dataclass
from statistics import fmean

from research.runs import Runs, spread
from smartfrz_lightning.benchmark.table import verdict

SHOWN = ("case", "goal", "the default", "missed", "the best that was run, within the FLOPs of the goal")
SHORT = ("case", "the default", "best of these", "", "less")
RULES = ("static", "interval", "unverified")
"""Half by hand, one layer after another at 0.7 of the FLOPs, and the default without its trial."""


@dataclass
class Goal:
    """Points against full training at FLOPs relative to it.

    Attributes:
        points: The least; ``None`` for no loss that shows.
        flops: The most; ``None`` for any.
    """

    points: float | None = None
    flops: float | None = None

    def __str__(self) -> str:
        points = "no loss that shows" if self.points is None else f"{self.points:+.1f}"
        return points if self.flops is None else f"{points} at {self.flops:g}"

    def kept_by(self, flops: list[float]) -> bool:
        """Whether a method costs no more, to two digits."""
        return self.flops is None or round(fmean(flops), 2) <= self.flops

    def reached_by(self, points: list[float]) -> bool:
        """Whether a method loses no more, to one digit."""
        return verdict(points) != "worse" if self.points is None else round(fmean(points), 1) >= self.points


GOALS = {
    "efficientnet_short": Goal(),
    "efficientnet_tuned": Goal(),
    "resnet32_short": Goal(),
    "resnet32_long": Goal(-0.3, 0.75),
    "resnet32_tuned": Goal(-0.3, 0.75),
    "efficientnet_all": Goal(-0.3, 0.75),
    "efficientnet_all_long": Goal(-0.3, 0.75),
    "efficientnet_cifar10_all": Goal(-0.3, 0.75),
    "resnet32_paper_length": Goal(-0.3, 0.7),
    "resnet32_inverted_short": Goal(-0.5),
    "resnet32_inverted_long": Goal(-0.5, 0.85),
    "cola_longer": Goal(flops=0.85),
    "film_reviews_long": Goal(flops=0.85),
    "scratch_resnet20": Goal(-0.5, 0.88),
}
"""Set before the default was settled."""

SHORT_CASES = ("efficientnet_short", "efficientnet_tuned", "resnet32_short", "resnet32_inverted_short", "vit_short")
"""250 steps. On average the default is to stay within 1 point of the best rule, in each within 2.5."""


def goals(runs: Runs, names: dict[str, str]) -> list[list[str]]:
    """A row for each case.

    Args:
        runs: The published runs.
        names: What each case is.
    """
    lines = []
    for case, goal in GOALS.items():
        points, flops = runs.points(case, "smart"), runs.flops(case, "smart")
        missed = [
            *(["points"] if not goal.reached_by(points) else []),
            *(["FLOPs"] if not goal.kept_by(flops) else []),
        ]
        reached = f"{spread(points, 1, True)} at {spread(flops)}"
        lines.append([names[case], str(goal), reached, ", ".join(missed) or "–", best(runs, case, goal)])
    return lines


def short(runs: Runs, names: dict[str, str]) -> list[list[str]]:
    """A row for each short case with such rules: points at equal FLOPs, and how many less than the best of them.

    Args:
        runs: The published runs.
        names: What each case is.
    """
    lines, less = [], []
    for case in SHORT_CASES:
        own = fmean(runs.above(case, "smart"))
        most, rule = max((fmean(above), rule) for rule in RULES if (above := runs.above(case, rule)))
        less.append(max(0.0, most - own))
        lines.append([names[case], f"{own:+.1f}", f"{most:+.1f}", f"`{rule}`", f"{less[-1]:.1f}"])
    return [*lines, ["mean", "", "", "", f"{fmean(less):.1f}"]]


def best(runs: Runs, case: str, goal: Goal) -> str:
    """Of all methods, shortened training and variants of the default, with two seeds or more, what has most points."""
    found = []
    for run, variant in dict.fromkeys((row["run"], row["variant"]) for row in runs.rows if row["case"] == case):
        points, flops = runs.points(case, run, variant=variant), runs.flops(case, run, variant=variant)
        if run != "full" and len(points) > 1 and goal.kept_by(flops):
            name = f"`{run}`{f' ({variant})' if variant else ''}"
            found.append((fmean(points), f"{name}: {spread(points, 1, True)} at {spread(flops)}"))
    return max(found, default=(0.0, "–"))[1]
