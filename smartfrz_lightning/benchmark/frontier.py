"""The frontier: what training everything reaches when it is shortened to a cost, and how far a method lies above it."""

from collections.abc import Mapping, Sequence

from smartfrz_lightning.benchmark.results import Result, cost, find_result
from smartfrz_lightning.extras import require


class Frontier:
    """Accuracy over cost of one seed: shortened runs and the whole one, joined by a monotone curve (PCHIP).

    A straight line between two runs would lie below the curve that training really follows, and so flatter whatever is
    compared with it.

    Args:
        points: Value by cost; the cost of the whole run is 1.
    """

    def __init__(self, points: Mapping[float, float]) -> None:
        require("scipy", "benchmark")
        from scipy.interpolate import PchipInterpolator

        if len(points) < 2 or 1.0 not in points:
            raise ValueError(
                f"points={dict(points)}: a frontier needs the whole run, at a cost of 1, and a shorter one"
            )
        self.costs = sorted(points)
        self._curve = PchipInterpolator(self.costs, [points[at] for at in self.costs])

    def at(self, cost: float) -> float | None:
        """What training everything reaches at a cost; ``None`` where that is below all that was run.

        Longer than the whole run counts as the whole run: a longer schedule was not tried.
        """
        if cost < self.costs[0]:
            return None
        return float(self._curve(min(cost, 1.0)))


def frontier_of(
    results: Sequence[Result], baseline: str, shortened: Sequence[str], seed: int, by: str
) -> Frontier | None:
    """The frontier of a seed, ``None`` where its runs are not there or cost no less than the whole run."""
    full = find_result(list(results), baseline, seed)
    shorter = [r for name in shortened if (r := find_result(list(results), name, seed)) is not None]
    if full is None or not shorter:
        return None
    points = {cost(result, by) / cost(full, by): float(result["value"]) for result in shorter}
    points = {at: value for at, value in points.items() if at < 1}  # a clock beside other work may say more
    return Frontier({**points, 1.0: float(full["value"])}) if points else None


def above_frontier(
    results: Sequence[Result], method: str, baseline: str, shortened: Sequence[str], by: str
) -> list[float]:
    """How far each run of a method lies above the frontier of its own seed, at its own cost.

    Seeds whose frontier does not reach down to that cost are left out.
    """
    above = []
    for result in results:
        if result["run"] != method:
            continue
        frontier = frontier_of(results, baseline, shortened, result["seed"], by)
        full = find_result(list(results), baseline, result["seed"])
        if frontier is not None and full is not None:
            there = frontier.at(cost(result, by) / cost(full, by))
            above += [] if there is None else [float(result["value"]) - there]
    return above
