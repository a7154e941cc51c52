"""When a trial should begin: what trials of several windows would have decided in recorded cases.

    python -m research.outcomes.trial_windows data data/weights --output trial_windows.jsonl  # record
    python -m research.verify  # the table, in docs

Each case of ``research/results/second_look.jsonl`` is trained for some steps with everything training, with prefixes
frozen from the first step, and, after a tenth of the run with a frozen prefix, with everything training from there.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jsonargparse import auto_cli

from research.outcomes.case import Case
from research.outcomes.examples import STORED
from research.outcomes.setup import set_up
from research.outcomes.training import Moment, train
from smartfrz_lightning.benchmark.frontier import Frontier
from smartfrz_lightning.predictor.start import INPUTS, SHIFT_FLOOR, StartPredictor
from smartfrz_lightning.stages.schedule import Schedule
from smartfrz_lightning.stages.start import DEEPEST, choose_prefix, deepest
from smartfrz_lightning.stages.verify import prefix_stays

CASES = Path(__file__).parents[1] / "results" / "second_look.jsonl"
FOUND = ("points", "FLOPs", "lose more than 2", "worst")
SHOWN = ("trial of", "begins at", "compared in", *FOUND)
DEPTHS = ("layers at most", *FOUND, "lose more than 1", "points at equal FLOPs")
BOUNDS = (0, 0.25, 0.5, 1, 1.5)

WINDOWS = {
    "ships": (0.1, 0.1, 0.5),
    "from the first step": (0.0, 0.1, 0.5),
    "from the first step, all of it": (0.0, 0.1, 0.0),
    "from the first step, longer": (0.0, 0.15, 0.0),
    "from the first step, twice as long": (0.0, 0.2, 0.5),
}
"""Begin and length, as shares of the run, and the share of the trial that is not looked at."""


def record(data: str, weights: str, output: str = "trial_windows.jsonl") -> None:
    """Train all cases as far as it takes; those that the file has are not trained again.

    Args:
        data: Folder of the images.
        weights: Folder of the weights.
        output: The file.
    """
    file = Path(output)
    done = len(file.read_text().splitlines()) if file.exists() else 0
    for line in CASES.read_text().splitlines()[done:]:
        row = json.loads(line)
        fields = {key: value for key, value in row["case"].items() if key in Case.__dataclass_fields__}
        case = Case(**{**fields, "classes": tuple(fields["classes"])})
        with file.open("a") as lines:
            lines.write(json.dumps(_losses(case, data, weights, [front["depth"] for front in row["fronts"]])) + "\n")


def _losses(case: Case, data: str, weights: str, depths: list[int]) -> dict[str, Any]:
    setup = set_up(case, data, weights)
    start, tenth = copy.deepcopy(setup.net.state_dict()), _steps(case.steps, 0.1)

    def trained(depth: int = 0, moment: Moment | None = None) -> tuple[list[float], list[Moment]]:
        losses: list[float] = []
        setup.net.load_state_dict(start)
        how: dict[str, Any] = {"front": setup.layers[:depth], "moment": moment, "losses": losses}
        kept = train(case, setup.net, setup.data, keep=[tenth], until=2 * tenth, **how)
        return [round(loss, 5) for loss in losses], kept

    rows: dict[str, Any] = {"full": trained()[0], "frozen": {}, "released": {}}
    for depth in depths:
        rows["frozen"][depth], [moment] = trained(depth)
        rows["released"][depth], _ = trained(moment=moment)
    return rows


def _steps(steps: int, share: float) -> int:
    """Of a trial, as in a short run."""
    return int(min(Schedule().trial_steps[0] * share / 0.1, share * steps) + 1e-6)


def outcome(
    predictor: StartPredictor,
    case: Mapping[str, Any],
    losses: Mapping[str, Any],
    window: str,
    bound: float = 0.5,
    most: float = DEEPEST,
) -> tuple[float, float]:
    """Points and FLOPs that a case comes to, with the deepest recorded prefix that the start stage would freeze.

    ``most`` is the share of the layers that may freeze.
    """
    begin, length, ignored = WINDOWS[window]
    inputs = torch.tensor(case["inputs"])[:, [STORED.index(name) for name in INPUTS]]
    inputs[:, INPUTS.index("shift")] = torch.tensor(SHIFT_FLOOR).log()
    safe = predictor(inputs).sigmoid().tolist()
    fronts = {front["depth"]: front for front in case["fronts"]}
    depths = [depth for depth in sorted(fronts) if depth <= deepest(len(safe), most)]
    costs, p = [fronts[depth]["cost"] for depth in depths], [safe[depth - 1] for depth in depths]
    chosen = choose_prefix(costs, p, Schedule().verified)
    if not chosen:
        return 0.0, 1.0
    steps, depth = case["case"]["steps"], depths[chosen - 1]
    first, takes = _steps(steps, begin) if begin else 0, _steps(steps, length)
    frozen = torch.tensor(losses["frozen"][str(depth)])[first : first + takes]
    full = torch.tensor(losses["released"][str(depth)] if begin else losses["full"])[:takes]
    seen = slice(int(ignored * takes), None)
    difference, own = (frozen - full)[seen], frozen[seen]
    error = max(float(difference.std() / len(own) ** 0.5), 0.01 * float(own.mean()))
    before, cost = first + takes, fronts[depth]["cost"]
    if prefix_stays(float(difference.mean()), error, bound):
        return fronts[depth]["accuracy"] - case["full"], cost + takes / steps
    released = fronts[depth]["released"] if begin else None
    points = 0.0 if released is None else released - case["full"]
    return points, (first * cost + takes * (1 + cost) + steps - before) / steps


def comparison(file: Path) -> list[list[str]]:
    """A line a window, over all cases."""
    lines = []
    for window, (begin, length, ignored) in WINDOWS.items():
        name = f"{length:.0%} of the run" + (", which ships" if window == "ships" else "")
        lines.append([name, f"{begin:.0%}", f"its last {1 - ignored:.0%}" if ignored else "all of it"])
        lines[-1] += _over_all(file, window)
    return lines


def bounds(file: Path) -> list[list[str]]:
    """A line for each number of standard errors by which the loss has to be higher, over all cases."""
    return [[f"{bound:g}", *_over_all(file, "ships", bound)] for bound in BOUNDS]


def depths(file: Path) -> list[list[str]]:
    """A line for prefixes of any depth, and one for those of two thirds of the layers at most, over all cases."""
    lines = []
    for name, most in (("any", 1.0), ("two thirds", DEEPEST)):
        cases, found = _outcomes(file, "ships", most=most)
        above = []
        for case, (points, cost) in zip(cases, found, strict=True):
            shortened = {float(share): value for share, value in case["shortened"].items()}
            there = Frontier({**shortened, 1.0: case["full"]}).at(cost)
            above += [] if there is None else [case["full"] + points - there]
        lose = sum(points < -1 for points, _ in found)
        lines.append([name, *_summary(found), str(lose), f"{fmean(above):+.1f}"])
    return lines


def _over_all(file: Path, window: str, bound: float = 0.5) -> list[str]:
    return _summary(_outcomes(file, window, bound)[1])


def _outcomes(
    file: Path, window: str, bound: float = 0.5, most: float = DEEPEST
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    losses = [json.loads(line) for line in file.read_text().splitlines()]
    predictor = StartPredictor.load()
    pairs = zip(cases, losses, strict=True)
    return cases, [outcome(predictor, case, row, window, bound, most) for case, row in pairs]


def _summary(found: list[tuple[float, float]]) -> list[str]:
    points = [one for one, _ in found]
    lose, cost = sum(one < -2 for one in points), fmean(cost for _, cost in found)
    return [f"{fmean(points):+.1f}", f"{cost:.2f}", str(lose), f"{min(points):+.1f}"]


if __name__ == "__main__":
    auto_cli(record)
