"""How recorded second looks end: what became of the fronts, and what rules that decide about them come to."""

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from rich.table import Table

from smartfrz_lightning.engine.probed_start import choose_front
from smartfrz_lightning.engine.second_look import (
    CHECKED,
    FIRM,
    FROM,
    LIKELY,
    SOME,
    held_until,
    how_much_stays,
    look_length,
)
from smartfrz_lightning.outcomes.fitting import HARMLESS
from smartfrz_lightning.outcomes.judge import interval, shown
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.start_inputs import unshifted

RULES = [(threshold, FIRM, SOME) for threshold in (0.5, 0.6, CHECKED, 0.7)]
RULES += [(CHECKED, firm, some) for firm, some in ((FIRM, 0.0), (FIRM, 1.0), (1.0, SOME), (2.0, SOME), (3.0, SOME))]
RULES += [(LIKELY, some, some) for some in (0.0, 0.5, 1.0)]
"""Likelihood from which on a front is held, and the standard errors by which it stays."""

EDGES = (-1, 0, 0.5, 1, 1.5, 2, 3)
"""Standard errors by which the copy's loss was higher, between which the recorded fronts are counted."""


def judged(cases: list[dict[str, Any]]) -> Table:
    """What became of the fronts, by how the copy's loss compared with that of the model, in standard errors.

    Example:
        >>> from smartfrz_lightning.outcomes.look_endings import judged
        >>> fronts = [{"depth": 4, "accuracy": 76.0, "gain": 0.05, "error": 0.01}]
        >>> judged([{"case": {"network": "vgg8", "weights": "own"}, "full": 80.0, "fronts": fronts}]).row_count
        1
    """
    table = Table("loss of the copy", "fronts", "harmless", "vs full, points, mean", "worst")
    every = [(case, front) for case in cases for front in case["fronts"] if front["error"]]
    rows = [(-front["gain"] / front["error"], front["accuracy"] - case["full"]) for case, front in every]
    for low, high in pairwise((-math.inf, *EDGES, math.inf)):
        points = [gained for higher, gained in rows if low <= higher < high]
        if points:
            harmless = statistics.fmean(one >= -HARMLESS for one in points)
            cells = f"{low:+g} to {high:+g}", str(len(points)), f"{harmless:.0%}"
            table.add_row(*cells, f"{statistics.fmean(points):+.1f}", f"{min(points):+.1f}")
    return table


@dataclass
class Ending:
    """How a case ends by a rule.

    Attributes:
        held: Share of the layers that were held at the start.
        stays: Share of the layers that went on being held after the second look.
        points: Of accuracy above full training.
        flops: Relative to full training, without the probe, with the second look.
        above: Points above plain training that was shortened to the same FLOPs.

    Example:
        >>> from smartfrz_lightning.outcomes.look_endings import Ending
        >>> Ending(held=0.6, stays=0.6, points=1.0, flops=0.65, above=4.0).above
        4.0
    """

    held: float
    stays: float
    points: float
    flops: float
    above: float


def frontier(case: dict[str, Any], spent: float) -> float:
    """What plain training reaches, shortened to so much of the FLOPs of full training.

    Example:
        >>> from smartfrz_lightning.outcomes.look_endings import frontier
        >>> round(frontier({"full": 80.0, "shortened": {"0.5": 70.0, "0.7": 76.0}}, 0.85), 1)
        78.0
    """
    plain = sorted([(float(share), one) for share, one in case["shortened"].items()] + [(1.0, case["full"])])
    at, curve = zip(*plain, strict=True)
    return float(np.interp(spent, at, np.maximum.accumulate(curve)))


def ending(
    case: dict[str, Any],
    predictor: StartPredictor,
    threshold: float = CHECKED,
    firm: float = FIRM,
    some: float = SOME,
) -> Ending:
    """What :class:`~smartfrz_lightning.SmartFreezeCallback` comes to, with the recorded fronts to choose from.

    From scratch nothing is held. Where a part of a front stays, the end is taken from the run in which that part alone
    was held from the start; where all is released of a front whose end was not recorded for that, it is taken from full
    training.

    Args:
        case: As :func:`look_again` returns it.
        predictor: The start predictor.
        threshold: The least likelihood of no harm at which a front is held.
        firm: See :func:`~smartfrz_lightning.engine.second_look.how_much_stays`.
        some: The same.

    Example:
        >>> from smartfrz_lightning.outcomes.look_endings import ending
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> from smartfrz_lightning.predictor.start_inputs import INPUTS
        >>> case = {"case": {"steps": 200, "weights": "own"}, "full": 80.0, "shortened": {"0.5": 70.0, "0.7": 76.0}}
        >>> case |= {"inputs": [[0.0] * len(INPUTS)] * 2, "fronts": []}
        >>> ending(case, StartPredictor.load())
        Ending(held=0.0, stays=0.0, points=0.0, flops=1.0, above=0.0)
    """
    sure = predictor(unshifted(torch.tensor(case["inputs"]))).sigmoid().tolist()  # as what is held is looked at again
    fronts = case["fronts"]
    likelihoods = [sure[one["depth"] - 1] for one in fronts]
    held = choose_front([one["cost"] for one in fronts], likelihoods, threshold)
    if not held or not case["case"]["weights"]:
        return Ending(0.0, 0.0, 0.0, 1.0, 0.0)
    front, steps = fronts[held - 1], case["case"]["steps"]
    looking = look_length(steps) / steps
    stays = how_much_stays(likelihoods[:held], front["gain"], front["error"], firm=firm, some=some)
    spent = FROM * front["cost"] + looking * (1 + front["cost"])
    spent += (1 - FROM - looking) * (fronts[stays - 1]["cost"] if stays else 1.0)
    released = front["released"] if front["released"] is not None else case["full"]
    accuracy = fronts[stays - 1]["accuracy"] if stays else released
    kept = fronts[stays - 1]["depth"] if stays else 0
    above = accuracy - frontier(case, spent)
    return Ending(front["depth"] / len(sure), kept / len(sure), accuracy - case["full"], spent, above)


def endings(cases: list[dict[str, Any]], predictor: StartPredictor) -> Table:
    """How the cases end by several rules; without runs in which the front trains again later (``outcomes.let_go``).

    Example:
        >>> from smartfrz_lightning.outcomes.look_endings import RULES, endings
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> from smartfrz_lightning.predictor.start_inputs import INPUTS
        >>> case = {"case": {"steps": 200, "weights": "own"}, "full": 80.0, "shortened": {"0.5": 70.0, "0.7": 76.0}}
        >>> case |= {"inputs": [[0.0] * len(INPUTS)] * 2, "fronts": []}
        >>> endings([case, case], StartPredictor.load()).row_count == len(RULES)
        True
    """
    columns = "held from", "firm", "some", "all stays", "a part", "none", "vs full, points", "worst", "lost 2 points"
    table = Table(*columns, "FLOPs", "above the frontier")
    cases = [case for case in cases if held_until(case["case"]["steps"]) == math.inf]
    for threshold, firm, some in RULES:
        found = [ending(case, predictor, threshold, firm, some) for case in cases]
        points, held = [one.points for one in found], [one for one in found if one.held]
        table.add_row(
            *(f"{value:g}" for value in (threshold, firm, some)),
            str(sum(one.stays == one.held for one in held)),
            str(sum(0 < one.stays < one.held for one in held)),
            str(sum(not one.stays for one in held)),
            shown(*interval(points)),
            f"{min(points):+.1f}",
            str(sum(one < -HARMLESS for one in points)),
            f"{sum(one.flops for one in found) / len(found):.2f}",
            shown(*interval([one.above for one in found])),
        )
    return table
