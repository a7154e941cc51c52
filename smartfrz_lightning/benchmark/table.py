"""The table of a benchmark: accuracy with spread, the paired difference to the baseline, and costs relative to it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from smartfrz_lightning.benchmark.frontier import above_frontier
from smartfrz_lightning.benchmark.results import Result, cost, find_result
from smartfrz_lightning.benchmark.spec import Published
from smartfrz_lightning.extras import require

_NOTHING: Mapping[str, Published] = {}


@dataclass
class Row:
    """One method over all its runs; ``nan`` where there is nothing to compute it from.

    Attributes:
        method: Its name.
        runs: Number of runs.
        mean: Mean of the metric.
        sd: Its sample standard deviation.
        difference: Mean difference to the baseline's run of the same seed.
        margin: Half width of the 95 % confidence interval of that difference (Student's t).
        flops: Training FLOPs relative to the baseline's run of the same seed, mean.
        seconds: Seconds of training relative to it, mean; the method's overhead is in it, validation is not.
        seconds_sd: Their sample standard deviation.
        memory: Peak memory of the GPU relative to the baseline, mean; ``nan`` on a CPU.
        overhead: Seconds in the callback's hooks as a share of the seconds of training.
        above_flops: Points above the frontier of the same seed at equal FLOPs, mean and half the width of its interval.
        above_seconds: The same at equal time.
    """

    method: str
    runs: int
    mean: float
    sd: float
    difference: float
    margin: float
    flops: float
    seconds: float
    seconds_sd: float
    memory: float
    overhead: float
    above_flops: tuple[float, float] = (math.nan, math.nan)
    above_seconds: tuple[float, float] = (math.nan, math.nan)

    @property
    def verdict(self) -> str:
        """Whether the difference to the baseline is more than noise."""
        if math.isnan(self.margin):
            return ""
        if abs(self.difference) <= self.margin:
            return "not detected"
        return "better" if self.difference > 0 else "worse"


def compare(
    results: Sequence[Result], methods: Sequence[str], baseline: str, shortened: Sequence[str] = ()
) -> list[Row]:
    """Rows of the table, in the order of ``methods``; methods without a result are left out.

    Args:
        results: All results.
        methods: What to show.
        baseline: What to compare with.
        shortened: Those of the methods that make the frontier.
    """
    rows = []
    for method in methods:
        own = [result for result in results if result["run"] == method]
        pairs = [(result, find_result(list(results), baseline, result["seed"])) for result in own]
        pairs = [(result, full) for result, full in pairs if full is not None]
        if not own:
            continue
        values = [result["value"] for result in own]
        differences = [result["value"] - full["value"] for result, full in pairs]
        seconds = [cost(result, "seconds") / cost(full, "seconds") for result, full in pairs]
        rows.append(
            Row(
                method=method,
                runs=len(own),
                mean=statistics.fmean(values),
                sd=_sd(values),
                difference=_mean(differences),
                margin=margin(differences) if method != baseline else math.nan,
                flops=_mean([cost(result, "flops") / cost(full, "flops") for result, full in pairs]),
                seconds=_mean(seconds),
                seconds_sd=_sd(seconds),
                memory=_mean([r["peak_bytes"] / full["peak_bytes"] for r, full in pairs if full.get("peak_bytes")]),
                overhead=_mean([r["timeline"]["callback_seconds"] / cost(r, "seconds") for r in own]),
                above_flops=_above(results, method, baseline, shortened, "flops"),
                above_seconds=_above(results, method, baseline, shortened, "seconds"),
            )
        )
    return rows


def _above(
    results: Sequence[Result], method: str, baseline: str, shortened: Sequence[str], by: str
) -> tuple[float, float]:
    if not shortened or method in (baseline, *shortened):
        return math.nan, math.nan
    points = above_frontier(results, method, baseline, shortened, by)
    return _mean(points), margin(points)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _sd(values: Sequence[float]) -> float:
    # the module cannot do with nan
    return statistics.stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else math.nan


def margin(differences: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of a mean (Student's t); ``nan`` of fewer than three numbers."""
    if len(differences) < 3:
        return math.nan
    require("scipy", "benchmark")
    from scipy.stats import t

    return float(t.ppf(0.975, len(differences) - 1)) * _sd(differences) / math.sqrt(len(differences))


def _has_frontier(rows: Sequence[Row]) -> bool:
    return any(not math.isnan(row.above_flops[0]) for row in rows)


def _lines(rows: Sequence[Row], baseline: str, published: Mapping[str, Published]) -> list[list[str]]:
    frontier = _has_frontier(rows)
    only_published = [name for name in published if name not in {row.method for row in rows}]
    return [
        *(_cells(row, baseline, published, frontier) for row in rows),
        *(
            [name, "0", *["–"] * (9 if frontier else 7), *_published_cells(name, baseline, published)]
            for name in only_published
        ),
    ]


def _cells(row: Row, baseline: str, published: Mapping[str, Published], frontier: bool) -> list[str]:
    cells = [
        row.method,
        str(row.runs),
        _number(100 * row.mean, ".2f", 100 * row.sd),
        _number(100 * row.difference, "+.2f", 100 * row.margin) if row.method != baseline else "–",
        row.verdict,
        _number(row.flops, ".2f"),
        _number(row.seconds, ".2f", row.seconds_sd),
        _number(row.memory, ".2f"),
        _number(100 * row.overhead, ".1f"),
    ]
    if frontier:
        above = (row.above_flops, row.above_seconds)
        cells += [_number(100 * points, "+.2f", 100 * margin) for points, margin in above]
    return cells + (_published_cells(row.method, baseline, published) if published else [])


def _published_cells(method: str, baseline: str, published: Mapping[str, Published]) -> list[str]:
    theirs, full = published.get(method), published.get(baseline)
    if theirs is None:
        return ["–"] * 3

    def relative(name: str) -> float:
        own, whole = getattr(theirs, name), getattr(full, name, None)
        return own / whole if own is not None and whole is not None else math.nan

    value = _number(theirs.value, ".2f", math.nan if theirs.sd is None else theirs.sd)
    return [value, _number(relative("tflops"), ".2f"), _number(relative("seconds"), ".2f")]


def _number(value: float, form: str, spread: float = math.nan) -> str:
    if math.isnan(value):
        return "–"
    return format(value, form) + ("" if math.isnan(spread) else f" ± {format(spread, form.lstrip('+'))}")


def _heads(metric: str, baseline: str, published: Mapping[str, Published], frontier: bool) -> list[str]:
    heads = [
        "method",
        "runs",
        f"{metric}, % ± sd",
        f"to {baseline}, points ± 95 % CI",
        "",
        "FLOPs",
        "time ± sd",
        "GPU memory",
        "in the callback, % of time",
    ]
    if frontier:
        heads += [f"above the frontier at equal {cost}, points ± 95 % CI" for cost in ("FLOPs", "time")]
    return heads + (["published, %", "published FLOPs", "published time"] if published else [])


def to_rich(rows: Sequence[Row], metric: str, baseline: str, published: Mapping[str, Published] = _NOTHING) -> Table:
    """For the terminal; what a publication reports stands beside it, its costs relative to its own baseline."""
    table = Table(title=f"Relative to {baseline!r} at the same seed")
    for number, head in enumerate(_heads(metric, baseline, published, _has_frontier(rows))):
        table.add_column(head, justify="left" if number in (0, 4) else "right", no_wrap=not number)
    for line in _lines(rows, baseline, published):
        table.add_row(*line)
    return table


def to_markdown(rows: Sequence[Row], metric: str, baseline: str, published: Mapping[str, Published] = _NOTHING) -> str:
    """For a README."""
    heads = _heads(metric, baseline, published, _has_frontier(rows))
    lines = [heads, ["---"] * len(heads), *_lines(rows, baseline, published)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
