"""The tables of README and documentation, made of the published runs."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

from research import goals, memory, papers
from research.long_runs import REFITTED, lengths, long_runs, refitted, two_fifths
from research.markdown import markdown
from research.outcomes import averages, from_the_start, hindsight, moments, trial_windows
from research.outcomes.later import (
    BY_MARGIN,
    BY_NETWORK,
    CALIBRATION,
    POLICY,
    SCORES,
    by_margin,
    by_network,
    calibration,
    comparison,
    policies,
)
from research.outcomes.later_examples import recordings
from research.outcomes.one_predictor import SHOWN
from research.outcomes.one_predictor import comparison as one_predictor_rows
from research.runs import RUNS, Runs, spread
from research.short_runs import one_bound, two_thirds
from smartfrz_lightning.benchmark.table import verdict

CASES = {
    "efficientnet_short": "EfficientNet-Lite0 (ImageNet), ten classes of CIFAR-100, 248 steps",
    "efficientnet_tuned": "the same, recipes from a grid",
    "resnet32_short": "ResNet-32 (CIFAR-10), ten classes of CIFAR-100, 250 steps",
    "resnet32_long": "the same, 1,488 steps",
    "resnet32_tuned": "the same, recipes from a grid",
    "resnet32_paper_length": "ResNet-32, all of CIFAR-100, 7,810 steps",
    "efficientnet_all": "EfficientNet-Lite0 (ImageNet), all of CIFAR-100, 3,124 steps",
    "efficientnet_all_long": "the same, 4,686 steps",
    "efficientnet_cifar10_all": "EfficientNet-Lite0 (ImageNet), all of CIFAR-10, 4,686 steps",
    "resnet32_inverted_short": "ResNet-32, inverted images, 250 steps",
    "resnet32_inverted_long": "the same, 1,488 steps",
    "vit_short": "vision transformer (half of CIFAR-100), ten other classes, 250 steps",
    "cola": "MiniLM, CoLA, 500 steps",
    "cola_longer": "MiniLM, all of CoLA, 1,068 steps",
    "film_reviews_long": "MiniLM, film reviews, 1,000 steps",
    "scratch_resnet20": "ResNet-20 from scratch, CIFAR-10, 1,872 steps",
}
"""What the cases of ``configs/benchmark/`` are."""

BUDGETS = {
    "resnet32_short": "ResNet-32, ten new classes, 250 steps",
    "resnet32_inverted_short": "the same network, inverted images, 250 steps",
    "resnet32_inverted_long": "the same, 1,488 steps",
    "scratch_resnet20": "ResNet-20 from scratch, 1,872 steps",
}
"""Cases in which a budget was given."""


def default(runs: Runs) -> str:
    """The default beside full training, and full training that was shortened to the same FLOPs."""
    return _default(runs, "against shortened training", lambda case: spread(runs.above(case, "smart"), 1, True))


def before(runs: Runs) -> str:
    """The default beside full training, and the default of 0.2.0."""

    def earlier(case: str) -> str:
        points = runs.points(case, "smart", "0.2.0")
        return f"{spread(points, 1, True)} at {spread(runs.flops(case, 'smart', '0.2.0'))}" if points else "–"

    return _default(runs, "0.2.0: points, FLOPs", earlier)


def _default(runs: Runs, last: str, cell: Callable[[str], str]) -> str:
    lines = []
    for case, name in CASES.items():
        points = runs.points(case, "smart")
        if not points:
            continue
        full = [100 * row["value"] for row in runs.full(case).values()]
        costs = [spread(runs.flops(case, "smart")), spread(runs.time(case, "smart"))]
        cells = [spread(full, 1), spread(points, 1, True), *costs, verdict(points), cell(case)]
        lines.append([name, str(len(points)), *cells])
    return markdown(["case", "seeds", "full", "points", "FLOPs", "time", "against full training", last], lines)


def cache(runs: Runs) -> str:
    """Time with the front cache of earlier commits, relative to frozen alone: after each number of epochs."""
    found: dict[str, list[list[float]]] = {}
    for row in map(json.loads, RUNS.with_name("cached.jsonl").read_text().splitlines()):
        found.setdefault(row["case"], []).append([cached / alone for alone, cached in row["seconds"]])
    lines = ["| | 2 epochs | 4 | 8 | 16 |", "|---|---|---|---|---|"]
    for name, seeds in found.items():
        lines.append(f"| {name} | " + " | ".join(spread(list(shares)) for shares in zip(*seeds, strict=True)) + " |")
    return "\n".join(lines) + "\n"


def cache_in_benchmarks(runs: Runs) -> str:
    """The same in whole benchmark runs, one after the other."""
    lines = []
    for case, name in (
        ("efficientnet_plain", "EfficientNet-Lite0, 4 epochs, no augmentation"),
        ("film_reviews_cached", "MiniLM, film reviews, 4 epochs"),
    ):
        for method in ("smart", "static"):
            alone = {row["seed"]: row for row in runs.of(case, method)}
            pairs = [(row, alone[row["seed"]]) for row in runs.of(case, f"{method}_cached")]
            time = spread([row["seconds"] / other["seconds"] for row, other in pairs])
            points = spread([100 * (row["value"] - other["value"]) for row, other in pairs], 1, True)
            lines.append([name, f"`{method}`", str(len(pairs)), time, points])
    return markdown(["", "method", "seeds", "time", "points"], lines)


def shown_methods(runs: Runs, case: str) -> list[str]:
    """What was run beside full training, with this version."""
    found = dict.fromkeys(
        row["run"] for row in runs.rows if row["case"] == case and row["version"] == "0.3.0" and not row["variant"]
    )
    return [method for method in found if method != "full" and runs.points(case, method)]


def rivals(runs: Runs) -> str:
    """Every method that was run in a case: points, costs, points above shortened full training, and regret."""
    lines = [
        "| case | method | seeds | points | FLOPs | time | points at equal FLOPs | regret |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, name in CASES.items():
        methods = shown_methods(runs, case)
        if len(methods) < 2:
            continue
        gains = {m: fmean(above) for m in methods if not m.startswith("full_") and (above := runs.above(case, m))}
        best = max(gains.values(), default=0.0)
        for number, method in enumerate(methods):
            above = runs.above(case, method) if method in gains else []
            lines.append(
                f"| {name if not number else ''} | `{method}` | {len(runs.points(case, method))} | "
                f"{spread(runs.points(case, method), 1, True)} | {spread(runs.flops(case, method))} | "
                f"{spread(runs.time(case, method))} | {spread(above, 1, True)} | "
                f"{f'{best - gains[method]:.1f}' if method in gains else '–'} |"
            )
    return "\n".join(lines) + "\n"


def budget(runs: Runs) -> str:
    """A budget of 0.3 of the FLOPs: as it is spent now, as it was before, and on a clock alone."""
    lines = []
    for case, name in BUDGETS.items():
        spent = (("save", ""), ("save", "a share of a step"), ("interval", ""))
        cells = [
            f"{spread(points, 1, True)} at {spread(runs.flops(case, run, variant=variant))}" if points else "–"
            for run, variant in spent
            for points in [runs.points(case, run, variant=variant)]
        ]
        lines.append([name, str(len(runs.points(case, "save"))), *cells])
    return markdown(["", "seeds", "`save=0.3`", "at once, without a trial", "one layer after another"], lines)


def grid(runs: Runs, case: str) -> str:
    """The best and the second best recipe of each method in the grid of a case."""
    found: dict[str, list[tuple[float, str]]] = {}
    for row in runs.rows:
        if row["case"] == case:
            method, name, rate, head = re.fullmatch(r"([a-z0-9]+)_([a-z]+)_([0-9_]+)_(\d+)", row["run"]).groups()
            recipe = f"{name.upper().replace('ADAM', 'Adam')}, {rate.replace('_', '.')}, head × {head}"
            found.setdefault(method, []).append((100 * row["value"], recipe))
    lines = []
    for method, recipes in found.items():
        (best, how), (next_best, other) = sorted(recipes, reverse=True)[:2]
        lines.append([f"`{method}`", str(len(recipes)), how, f"{best:.1f}", other, f"{next_best:.1f}"])
    return markdown(["", "recipes", "best", "%", "next", "%"], lines)


def _later(what: Callable, heads: Sequence[str]) -> Callable[[Runs], str]:
    """A table of the later predictor's card, from the recordings."""
    return lambda runs: markdown(heads, what(*recordings(RUNS.with_name("moments.jsonl"))))


def _inputs(data: list, over: list) -> list[list[str]]:
    return [*comparison(data, over), *json.loads(RUNS.with_name("later_attention.json").read_text())]


def from_start(runs: Runs) -> str:
    """What prefixes came to that were frozen from the first step to the last."""
    return markdown(from_the_start.SHOWN, from_the_start.from_the_start(RUNS.with_name("moments.jsonl")))


def with_hindsight(runs: Runs) -> str:
    """What freezing would come to if it were known beforehand what it costs."""
    return markdown(hindsight.SHOWN, hindsight.hindsight(RUNS.with_name("moments.jsonl")))


def at_averages(runs: Runs) -> str:
    """What freezing prefixes at averages of their weights came to."""
    rows = averages.averages(RUNS.with_name("moments.jsonl"), RUNS.with_name("averaged.jsonl"))
    return markdown(averages.SHOWN, rows)


def one_predictor(runs: Runs) -> str:
    """Whether one predictor answers at the start and later as well as two."""
    return markdown(SHOWN, one_predictor_rows(RUNS.with_name("moments.jsonl")))


def trial(runs: Runs) -> str:
    """What trials of several windows would have come to."""
    return markdown(trial_windows.SHOWN, trial_windows.comparison(RUNS.with_name("trial_windows.jsonl")))


def trial_bounds(runs: Runs) -> str:
    """What several bounds of the trial would have come to."""
    heads = ["standard errors", *trial_windows.FOUND]
    return markdown(heads, trial_windows.bounds(RUNS.with_name("trial_windows.jsonl")))


def depths(runs: Runs) -> str:
    """What trials of prefixes of any depth, and of two thirds of the layers at most, would have come to."""
    return markdown(trial_windows.DEPTHS, trial_windows.depths(RUNS.with_name("trial_windows.jsonl")))


def thousands(runs: Runs) -> str:
    """What freezing came to in recorded runs of thousands of steps."""
    recorded = moments.summaries(RUNS.with_name("moments.jsonl"))
    rows = moments.costs([case for case in recorded if case["case"]["steps"] >= 2000])
    return markdown(moments.COSTS[:4], [row[:4] for row in rows])


TABLES: dict[str, Callable[[Runs], str]] = {
    "default": default,
    "before": before,
    "rivals": rivals,
    "goals_of_short_runs": lambda runs: markdown(goals.SHORT, goals.short(runs, CASES)),
    "goals": lambda runs: markdown(goals.SHOWN, goals.goals(runs, CASES)),
    "budget": budget,
    "grid_efficientnet": partial(grid, case="rates_efficientnet_tuned"),
    "grid_resnet32": partial(grid, case="rates_resnet32_tuned"),
    "grid_vit": partial(grid, case="rates_vit_shortened"),
    "paper_reported": lambda runs: markdown(papers.REPORTED, papers.reported()),
    "paper_measured": lambda runs: markdown(papers.MEASURED, papers.measured(runs)),
    "field": lambda runs: markdown(
        ["", "EfficientNet-Lite0", "at equal FLOPs", "ResNet-32", "at equal FLOPs"], papers.field(runs)
    ),
    "cache": cache,
    "cache_in_benchmarks": cache_in_benchmarks,
    "memory": lambda runs: markdown(memory.SHOWN, memory.table()),
    "trial_windows": trial,
    "trial_bounds": trial_bounds,
    "one_bound": one_bound,
    "depths": depths,
    "two_thirds": two_thirds,
    "later_inputs": _later(_inputs, ["inputs", *SCORES]),
    "later_policy": _later(policies, POLICY),
    "later_margins": _later(by_margin, BY_MARGIN),
    "from_start": from_start,
    "two_fifths": two_fifths,
    "hindsight": with_hindsight,
    "averages": at_averages,
    "lengths": lengths,
    "long_runs": long_runs,
    "refitted": lambda runs: markdown(REFITTED, refitted(runs, CASES)),
    "one_predictor": one_predictor,
    "later_calibration": _later(calibration, CALIBRATION),
    "later_networks": _later(by_network, BY_NETWORK),
    "thousands": thousands,
}
