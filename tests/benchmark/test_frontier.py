"""Points above the frontier, in cases that are worked out by hand."""

import math

import pytest

from smartfrz_lightning.benchmark.frontier import Frontier, above_frontier
from smartfrz_lightning.benchmark.picture import accuracy_cost
from smartfrz_lightning.benchmark.spec import Benchmark, Run
from smartfrz_lightning.benchmark.table import compare, margin


def result(run, seed, value, flops, seconds, callback=0.0):
    timeline = {"spent": {"forward": flops}, "steps": 1, "callback_seconds": callback}
    return {"run": run, "seed": seed, "value": value, "seconds": {"train": seconds}, "timeline": timeline}


SHORTER = ["full_0.25", "full_0.5"]
ABOVE = [f"above the frontier at equal {by}, points ± 95 % CI" for by in ("FLOPs", "time")]


def shown(results):
    benchmark = Benchmark([], {"full": Run(), "held": Run()}, [1, 2], frontier=[0.25, 0.5])
    return {row["method"]: row for row in compare(results, benchmark)}


def runs():
    """Two seeds, the second one two points higher; ``held`` costs half the FLOPs and a quarter of the time."""
    found = []
    for seed, up in ((1, 0.0), (2, 0.02)):
        found += [result("full", seed, 0.80 + up, 100, 40), result("full_0.5", seed, 0.74 + up, 50, 20)]
        found += [result("full_0.25", seed, 0.60 + up, 25, 10)]
    return [*found, result("held", 1, 0.75, 50, 10), result("held", 2, 0.79, 50, 10)]


def test_points_are_paired_by_seed():
    assert above_frontier(runs(), "held", "full", SHORTER, "flops") == pytest.approx([0.01, 0.03])
    assert above_frontier(runs(), "held", "full", SHORTER, "seconds") == pytest.approx([0.15, 0.17])
    rows = shown(runs())
    assert [rows["held"][head] for head in ABOVE] == ["+2.00", "+16.00"]
    assert {rows[name][head] for name in ("full", *SHORTER) for head in ABOVE} == {"–"}
    assert rows["held"]["to full, points ± 95 % CI"] == "-4.00" and rows["held"]["FLOPs"] == "0.50"


def test_an_interval_takes_three_seeds():
    assert math.isnan(margin([1.0, 3.0]))
    assert margin([1.0, 2.0, 3.0]) == pytest.approx(4.30265 / math.sqrt(3), rel=1e-4)  # t of two degrees of freedom


def test_a_curve_between_its_points_and_beyond_them():
    frontier = Frontier({0.25: 60.0, 0.5: 74.0, 1.0: 80.0})
    between = [frontier.at(0.25 + 0.75 * n / 50) for n in range(51)]
    assert between == sorted(between)  # never above the whole run, never a dip
    assert frontier.at(0.75) > 77  # above the straight line
    assert frontier.at(3.0) == 80 and frontier.at(0.2) is None
    for points in ({1.0: 80.0}, {0.5: 70.0, 0.9: 80.0}):
        with pytest.raises(ValueError, match="a frontier needs the whole run"):
            Frontier(points)


def test_what_is_cheaper_than_all_that_was_run_has_no_points():
    found = [one for one in runs() if one["run"] != "held"] + [result("held", 1, 0.9, 5, 1)]
    assert above_frontier(found, "held", "full", SHORTER, "flops") == []
    assert shown(found)["held"][ABOVE[0]] == "–"


def test_shorter_runs_that_took_no_less_time_make_no_frontier():
    found = [result("full", 1, 0.8, 100, 10), result("full_0.5", 1, 0.7, 50, 11), result("held", 1, 0.8, 50, 5)]
    assert above_frontier(found, "held", "full", ["full_0.5"], "flops") == pytest.approx([0.1])
    assert above_frontier(found, "held", "full", ["full_0.5"], "seconds") == []


@pytest.mark.parametrize("cheapest", [0.25, 0.35])  # the second one is less in float32
def test_the_picture_begins_at_the_cheapest_run(cheapest):
    results = [r for r in runs() if r["run"] != "full_0.25"]
    results += [result("full_0.25", seed, 0.60, 100 * cheapest, 10) for seed in (1, 2)]
    benchmark = Benchmark([], {"full": Run(), "held": Run()}, [1, 2], frontier=[0.25, 0.5])
    figure = accuracy_cost(results, benchmark)
    for axes in figure.axes:
        [line] = [line for line in axes.lines if line.get_label() == "training everything, shorter"]
        assert min(line.get_ydata()) == pytest.approx(60) and max(line.get_xdata()) == 1
    labels = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert labels == ["training everything, shorter", "full", "held"]


def test_a_benchmark_makes_its_frontier():
    benchmark = Benchmark([], {"half": Run("StaticFreezeCallback"), "full": Run()}, seeds=[1], frontier=[0.5, 0.25])
    assert benchmark.shortened == SHORTER
    order = [name for name, _, _ in benchmark.schedule()]
    assert order.index("full") < order.index("full_0.25") and len(order) == 4
    for frontier in ([0.0], [1.0], [1.5]):
        with pytest.raises(ValueError, match="frontier=.*between 0 and 1"):
            Benchmark([], {"full": Run()}, seeds=[1], frontier=frontier)
