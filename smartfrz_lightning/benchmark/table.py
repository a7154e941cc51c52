"""The table of a benchmark: accuracy with spread, the paired difference to the baseline, and costs relative to it."""

import math
import statistics
from collections.abc import Callable, Sequence
from operator import itemgetter

from rich.table import Table

from smartfrz_lightning.benchmark.frontier import above_frontier
from smartfrz_lightning.benchmark.results import Result, cost, find_result
from smartfrz_lightning.benchmark.spec import Benchmark
from smartfrz_lightning.extras import require


def compare(results: Sequence[Result], benchmark: Benchmark) -> list[dict[str, str]]:
    """Rows of the table, a cell by its heading; methods that have neither a result nor published figures are left out.

    Costs are relative to the baseline's run of the same seed: training FLOPs, seconds of training (with the method's
    overhead, without validation), and peak memory of a GPU. Intervals are those of Student's t.
    """
    done = {result["run"] for result in results}
    rows = []
    for method in dict.fromkeys([*benchmark.methods, *benchmark.published]):
        if method in done:
            rows.append(_measured(results, method, benchmark))
        elif method in benchmark.published:
            rows.append({"method": method, "runs": "0"})
    heads = list(dict.fromkeys(head for row in rows for head in row))
    rows = [{head: row.get(head, "–") for head in heads} for row in rows]
    return [row | _published(row["method"], benchmark) for row in rows] if benchmark.published else rows


def _measured(results: Sequence[Result], method: str, benchmark: Benchmark) -> dict[str, str]:
    own = [result for result in results if result["run"] == method]
    pairs = [(result, find_result(list(results), benchmark.baseline, result["seed"])) for result in own]

    def paired(value: Callable[[Result], float], combine: Callable[[float, float], float]) -> list[float]:
        return [combine(value(one), value(full)) for one, full in pairs if full is not None]

    def relative(value: Callable[[Result], float]) -> list[float]:
        return paired(value, lambda one, full: one / full if full else math.nan)

    plain = method == benchmark.baseline
    differences = [] if plain else paired(itemgetter("value"), lambda one, full: 100 * (one - full))
    seconds = relative(lambda result: cost(result, "seconds"))
    values = [100 * result["value"] for result in own]
    row = {
        "method": method,
        "runs": str(len(own)),
        f"{benchmark.metric}, % ± sd": _number(_mean(values), ".2f", _sd(values)),
        f"to {benchmark.baseline}, points ± 95 % CI": _number(_mean(differences), "+.2f", margin(differences)),
        "": "" if plain else verdict(differences),
        "FLOPs": _number(_mean(relative(lambda result: cost(result, "flops"))), ".2f"),
        "time ± sd": _number(_mean(seconds), ".2f", _sd(seconds)),
        "GPU memory": _number(_mean(relative(lambda result: result.get("peak_bytes") or math.nan)), ".2f"),
        "in the callback, % of time": _number(
            _mean([100 * result["timeline"]["callback_seconds"] / cost(result, "seconds") for result in own]), ".1f"
        ),
    }
    for by, unit in (("flops", "FLOPs"), ("seconds", "time")) if benchmark.shortened else ():
        points = []
        if not plain and method not in benchmark.shortened:
            points = above_frontier(results, method, benchmark.baseline, benchmark.shortened, by)
        above = [100 * point for point in points]
        head = f"above the frontier at equal {unit}, points ± 95 % CI"
        row[head] = _number(_mean(above), "+.2f", margin(above))
    return row


def _published(method: str, benchmark: Benchmark) -> dict[str, str]:
    """What a publication reports, its costs relative to its own baseline."""
    theirs, full = benchmark.published.get(method), benchmark.published.get(benchmark.baseline)

    def relative(name: str) -> float:
        own, whole = getattr(theirs, name, None), getattr(full, name, None)
        return own / whole if own is not None and whole is not None else math.nan

    value, spread = (theirs.value, theirs.sd) if theirs is not None else (math.nan, None)
    return {
        "published, %": _number(value, ".2f", math.nan if spread is None else spread),
        "published FLOPs": _number(relative("tflops"), ".2f"),
        "published time": _number(relative("seconds"), ".2f"),
    }


def verdict(differences: Sequence[float]) -> str:
    """Whether a difference is more than noise, by its 95 % interval."""
    half = margin(differences)
    if math.isnan(half):
        return "too few seeds"
    if abs(_mean(differences)) <= half:
        return "no difference shown"
    return "better" if _mean(differences) > 0 else "worse"


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


def _number(value: float, form: str, spread: float = math.nan) -> str:
    if math.isnan(value):
        return "–"
    return format(value, form) + ("" if math.isnan(spread) else f" ± {format(spread, form.lstrip('+'))}")


def to_rich(rows: Sequence[dict[str, str]], title: str) -> Table:
    """For the terminal."""
    table = Table(title=title)
    for head in rows[0]:
        table.add_column(head, justify="left" if head in ("method", "") else "right", no_wrap=head == "method")
    for row in rows:
        table.add_row(*row.values())
    return table


def to_markdown(rows: Sequence[dict[str, str]]) -> str:
    """For a README."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
