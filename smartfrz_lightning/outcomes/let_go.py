r"""What it comes to that a front which was held from the start trains as well from some moment on.

    python -m smartfrz_lightning.outcomes.let_go --cases configs/outcomes/images.yaml --output let_go.jsonl \
        --groups '[resnet20, vgg8]' --shortest 800
    python -m smartfrz_lightning.outcomes.let_go --judge let_go.jsonl

Started again, it goes on with the cases that are missing. Needs the extra ``benchmark``.
"""

import copy
import json
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from smartfrz_lightning.engine.probed_start import choose_front, probe_length
from smartfrz_lightning.engine.second_look import CHECKED, FORESEEN, LIKELY, look_begin, look_length
from smartfrz_lightning.outcomes.case import Case
from smartfrz_lightning.outcomes.fitting import HARMLESS
from smartfrz_lightning.outcomes.judge import interval, shown
from smartfrz_lightning.outcomes.line_by_line import chosen_cases, record_lines
from smartfrz_lightning.outcomes.look_again import look_at, probed
from smartfrz_lightning.outcomes.look_endings import frontier
from smartfrz_lightning.outcomes.setup import set_up
from smartfrz_lightning.outcomes.training import Moment, evaluate, train
from smartfrz_lightning.predictor.start import SHIPPED_START, StartPredictor
from smartfrz_lightning.predictor.start_inputs import unshifted

MOMENTS, SHORTENED = (0.4, 0.7), (0.5, 0.7)
"""From which on the front trains, and of shortened runs, as shares of the steps."""

LENGTHS = ((0, 400), (401, 800), (801, 10**9))
"""Steps of the runs that are counted together."""


def let_go(case: Case, data: str | Path, weights: str | Path, predictor: StartPredictor) -> dict[str, Any]:
    """Train a case in full, shortened, with the front held that is likely harmless, and with that let go.

    Args:
        case: The case.
        data: Folder of the images or sentences.
        weights: Folder of the weights.
        predictor: Chooses the front.

    Returns:
        The case; the accuracy of full training, in percent, and that of shortened training by its share of the steps;
        and of the front, where there is one, its depth, what a step costs with it held, relative to full training, its
        accuracy if it is held to the end, and if it trains from a moment on, by that; in a long run also the gain and
        the error of the second look, and the accuracy if that lets it go.
    """
    setup = set_up(case, data, weights)
    net, layers, train_set = setup.net, setup.layers, setup.data
    start = copy.deepcopy(net.state_dict())
    inputs, costs = probed(case, net, layers, train_set)
    sure = predictor(unshifted(inputs)).sigmoid().tolist()
    depth = choose_front(costs, sure, CHECKED if case.steps <= FORESEEN else LIKELY)
    found: dict[str, Any] = {"case": case.asdict(), "front": None}
    if not depth:
        return found

    def finished() -> float:
        return evaluate(net, setup.validation)["accuracy"]

    def plain(share: float) -> float:
        net.load_state_dict(start)
        train(case, net, train_set, round(share * case.steps))
        return finished()

    found |= {"full": plain(1.0), "shortened": {str(share): plain(share) for share in SHORTENED}}
    net.load_state_dict(start)
    keep = [probe_length(case.steps), *(round(at * case.steps) for at in MOMENTS)]
    first, *moments = train(case, net, train_set, front=layers[:depth], keep=keep)
    front = {"depth": depth, "cost": costs[depth - 1], "accuracy": finished(), "let_go": {}}
    for share, moment in zip(MOMENTS, moments, strict=True):
        train(case, net, train_set, moment=moment)
        front["let_go"][str(share)] = finished()
    if not look_begin(case.steps):
        look = look_at(case, net, layers[:depth], train_set, first, look_length(case.steps))
        state = copy.deepcopy(look.model.state_dict()), look.optimizer.state_dict()
        train(case, net, train_set, moment=Moment(first.step + look.steps, *state))
        front["look"] = {"gain": look.gain, "error": look.error, "released": finished()}
    return found | {"front": front}


def judged(cases: list[dict[str, Any]]) -> Table:
    """What holding to the end and letting go come to, by the length of the runs.

    Example:
        >>> from smartfrz_lightning.outcomes.let_go import judged
        >>> front = {"depth": 9, "cost": 0.6, "accuracy": 79.0, "let_go": {"0.4": 81.0}}
        >>> case = {"case": {"steps": 800}, "full": 80.0, "shortened": {"0.5": 78.0}, "front": front}
        >>> judged([case, case]).row_count
        2
    """
    table = Table("steps", "held", "cases", "vs full, points", "worst", "lost 2 points", "FLOPs", "above the frontier")
    held = [case for case in cases if case["front"]]
    for low, high in LENGTHS:
        some = [case for case in held if low <= case["case"]["steps"] <= high]
        for share in sorted({share for case in some for share in case["front"]["let_go"]}) + ["1"]:
            rows = []
            for case in some:
                front = case["front"]
                end = front["accuracy"] if share == "1" else front["let_go"].get(share)
                spent = float(share) * front["cost"] + 1 - float(share)
                if end is not None:
                    rows.append((end - case["full"], spent, end - frontier(case, spent)))
            if rows:
                points, spent, above = zip(*rows, strict=True)
                table.add_row(
                    f"{min(case['case']['steps'] for case in some)} to {max(case['case']['steps'] for case in some)}",
                    f"{float(share):.0%}",
                    str(len(rows)),
                    shown(*interval(list(points))),
                    f"{min(points):+.1f}",
                    str(sum(one < -HARMLESS for one in points)),
                    f"{sum(spent) / len(spent):.2f}",
                    shown(*interval(list(above))),
                )
    return table


def main(
    cases: str | None = None,
    data: str = "data",
    weights: str = "data/weights",
    output: str = "let_go.jsonl",
    groups: list[str] | None = None,
    shortest: int = 400,
    longest: int = 2000,
    most: int | None = None,
    judge: str | None = None,
    predictor: str | None = None,
) -> None:
    """Record what letting go comes to, or judge what is recorded.

    Args:
        cases: File of groups of cases to draw, or a condensed file of recorded ones.
        data: Folder with a folder for each of the cases' ``data``.
        weights: Folder of the networks' weights.
        output: File of what is recorded, a line each.
        groups: Only these, by name.
        shortest: Only cases of at least so many steps.
        longest: Only cases of at most so many steps.
        most: Only so many cases, drawn at random.
        judge: Print what this file comes to, and record nothing.
        predictor: File of the start predictor that chooses the fronts; the shipped one by default.
    """
    if judge:
        Console().print(judged([json.loads(line) for line in Path(judge).read_text().splitlines()]))
        return
    chooses = StartPredictor.load(predictor or SHIPPED_START)
    drawn = chosen_cases(cases, groups, shortest, longest, most)
    record_lines(drawn, output, lambda case: let_go(case, data, weights, chooses))


if __name__ == "__main__":
    auto_cli(main)
