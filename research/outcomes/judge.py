"""Judge rules that choose a front to hold on recorded cases.

    python -m research.outcomes.judge runs/held_out

Every rule chooses among the recorded fronts of each case, and the finished models of these say what it came to, so that
all rules are judged on the same runs. Needs the extra ``benchmark``.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torchmetrics.functional.classification import binary_auroc

from research.outcomes.examples import Example, load_examples
from research.outcomes.fitting import HARMLESS, harmless, recorded
from research.outcomes.rules import Rule, baselines
from smartfrz_lightning.extras import require
from smartfrz_lightning.predictor.start import StartPredictor


@dataclass
class Verdict:
    """What a rule came to, on average over cases, each with half the width of its 95 % interval (Student's t).

    Attributes:
        gain: Points above full training.
        harmless: Share of the cases with at most 2 points less.
        flops: Relative to full training, without the probe.
        above: Points above the frontier, plain training that is shortened to the same FLOPs.

    Example:
        >>> from research.outcomes.judge import Verdict
        >>> Verdict((1.0, 0.5), 1.0, 0.6, (5.0, 1.0)).gain
        (1.0, 0.5)
    """

    gain: tuple[float, float]
    harmless: float
    flops: float
    above: tuple[float, float]


def verdict(rule: Rule, examples: Sequence[Example]) -> Verdict:
    """Judge one rule.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.judge import verdict
        >>> from research.outcomes.rules import static
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> one = verdict(static(0), cases)
        >>> 0 < one.flops < 1
        True
    """
    gains, flops, above = [], [], []
    for example in examples:
        depth = rule(example)
        run = example.held[depth] if depth else example.outcome.full
        gains.append(example.gain(run))
        flops.append(example.outcome.cost(run))
        above.append(example.above(run) if depth else 0.0)
    harmless = statistics.fmean(gain >= -HARMLESS for gain in gains)
    return Verdict(interval(gains), harmless, statistics.fmean(flops), interval(above))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t); ``nan`` of a single value.

    Example:
        >>> from research.outcomes.judge import interval
        >>> mean, half = interval([1.0, 2.0, 3.0])
        >>> mean, round(half, 2)
        (2.0, 2.48)
    """
    require("scipy", "benchmark")
    from scipy.stats import t

    count = len(values)
    spread = statistics.stdev(values) / math.sqrt(count) * t.ppf(0.975, count - 1) if count > 1 else math.nan
    return statistics.fmean(values), float(spread)


def shown(mean: float, half: float) -> str:
    """Points and half the width of their interval, if there is one.

    Example:
        >>> from research.outcomes.judge import interval, shown
        >>> shown(*interval([1.0, 2.0, 3.0])), shown(*interval([1.0]))
        ('+2.0 ± 2.5', '+1.0')
    """
    return f"{mean:+.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def verdict_table(examples: Sequence[Example], rules: Mapping[str, Rule], title: str) -> Table:
    """All rules on the same cases.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.judge import verdict_table
        >>> from research.outcomes.rules import static
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> table = verdict_table(cases, {"first front": static(0)}, "all")
        >>> table.row_count
        1
    """
    table = Table(title=f"{title}: {len(examples)} runs", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("points vs full", "harmless", "FLOPs", "above frontier"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, rule in rules.items():
        one = verdict(rule, examples)
        table.add_row(name, shown(*one.gain), f"{one.harmless:.0%}", f"{one.flops:.2f}", shown(*one.above))
    return table


def trust_table(groups: Mapping[str, Sequence[Example]], predictor: StartPredictor, threshold: float) -> Table:
    """How far a predictor's likelihoods can be trusted, over all recorded fronts of each group of cases.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.judge import trust_table
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> trust_table({"all": cases}, StartPredictor.load(), threshold=0.8).row_count
        1
    """
    table = Table(title="likelihoods of no harm", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("fronts", "AUROC", f"said {threshold:g} and more", "of these harmless"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, group in groups.items():
        said = torch.cat([predictor(one.inputs)[recorded(one)].sigmoid() for one in group])
        was = torch.cat([harmless(one) for one in group])
        auroc = f"{float(binary_auroc(said, was.int())):.2f}" if was.min() < was.max() else "–"
        sure = said >= threshold
        table.add_row(name, str(len(said)), auroc, str(int(sure.sum())), str(int(was[sure].sum())))
    return table


def main(
    outcomes: str,
    predictors: list[str] | None = None,
    thresholds: Sequence[float] = (0.8,),
    by: str = "task",
    probe_steps: int | None = None,
) -> None:
    """Print a table a group of cases, and one of all.

    Args:
        outcomes: Folder of the recorded cases, or a condensed file of them.
        predictors: Files of start predictors; the shipped one by default.
        thresholds: Likelihoods of no harm at which they are tried.
        by: What makes a group: ``"task"`` (everything but the seed and the classes) or ``"family"`` of the network.
        probe_steps: Steps of the probe; as many as a run of this length has by default.
    """
    if by not in GROUPS:
        raise ValueError(f"by={by!r}: one of {', '.join(GROUPS)}")
    examples = load_examples(outcomes, probe_steps)
    learned = {Path(path).stem if path else "shipped": StartPredictor.load(path) for path in predictors or [None]}
    rules, console = baselines(learned, thresholds), Console(width=120)
    groups = grouped(examples, GROUPS[by])
    for name, group in groups.items():
        console.print(verdict_table(group, rules, name))
    if len(groups) > 1:
        groups["all"] = examples
        console.print(verdict_table(examples, rules, "all"))
    for name, predictor in learned.items():
        for threshold in thresholds:
            console.print(f"{name}:", trust_table(groups, predictor, threshold))


def grouped(examples: Iterable[Example], key: Callable[[Example], str]) -> dict[str, list[Example]]:
    """Cases by group, in the order of their names.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.judge import grouped
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> sum(map(len, grouped(cases, lambda case: case.family).values())) == len(cases)
        True
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(key(example), []).append(example)
    return dict(sorted(groups.items()))


def _task(example: Example) -> str:
    case = example.outcome.case
    data = f"{len(case.classes)} classes of {case.data}" if case.shift == "none" else f"{case.data}, {case.shift}"
    return f"{example.family}, {data}, {case.optimizer} {case.schedule}, {case.steps} steps"


GROUPS: dict[str, Callable[[Example], str]] = {"task": _task, "family": lambda example: example.family}

if __name__ == "__main__":
    auto_cli(main)
