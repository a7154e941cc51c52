r"""Try the second look on recorded kinds of cases: would it have kept the fronts that do no harm, and only those?

    python -m smartfrz_lightning.outcomes.look_again --cases configs/outcomes/images.yaml --output looks.jsonl \
        --groups '[vgg8, vgg8_cifar10]' --most 14
    python -m smartfrz_lightning.outcomes.look_again --judge looks.jsonl

Started again, it goes on with the cases that are missing. Needs the extra ``benchmark``.
"""

import copy
import json
import math
import random
import statistics
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from smartfrz_lightning.cost.flops import StepFlopCounter
from smartfrz_lightning.cost.layer_flops import flops_when_frozen, layer_flops
from smartfrz_lightning.engine.probed_start import LEAST, choose_front, probe_length
from smartfrz_lightning.engine.second_look import (
    CHECKED,
    FIRM,
    FROM,
    LIKELY,
    SOME,
    SecondLook,
    how_much_stays,
    look_length,
)
from smartfrz_lightning.engine.stillness import Stillness
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.outcomes.case import Case, draw_cases
from smartfrz_lightning.outcomes.examples import load_examples
from smartfrz_lightning.outcomes.fitting import HARMLESS
from smartfrz_lightning.outcomes.judge import interval
from smartfrz_lightning.outcomes.probe import probe_gradients
from smartfrz_lightning.outcomes.setup import set_up
from smartfrz_lightning.outcomes.training import (
    Images,
    Moment,
    batch_at,
    evaluate,
    learning_rate,
    make_optimizer,
    train,
)
from smartfrz_lightning.predictor.start import SHIPPED_START, StartPredictor
from smartfrz_lightning.predictor.start_inputs import start_inputs

DEPTHS, SHORTENED = (0.4, 0.6, 0.8, 0.85, 0.9), (0.5, 0.7)
"""Of the fronts, as shares of the layers before the head; of shortened runs."""

RULES = [(threshold, FIRM, SOME) for threshold in (0.5, 0.6, CHECKED, 0.7)]
RULES += [(CHECKED, firm, some) for firm, some in ((FIRM, 0.0), (FIRM, 1.0), (1.0, SOME), (2.0, SOME), (3.0, SOME))]
RULES += [(LIKELY, some, some) for some in (0.0, 0.5, 1.0)]
"""Likelihood from which on a front is held, and the standard errors by which it stays."""

EDGES = (-1, 0, 0.5, 1, 1.5, 2, 3)


def look_at(case: Case, net: torch.nn.Module, front: list, data: Images, moment: Moment, steps: int) -> SecondLook:
    """Train a network with a front held, from a moment on, and a copy of it without, in the same batches.

    Args:
        case: The case.
        net: The network.
        front: The layers that are held.
        data: Images and labels.
        moment: The training of the network with the front held.
        steps: How many steps.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.layers import find_layers
        >>> from smartfrz_lightning.outcomes.case import Case
        >>> from smartfrz_lightning.outcomes.look_again import look_at
        >>> from smartfrz_lightning.outcomes.networks import build
        >>> from smartfrz_lightning.outcomes.training import train
        >>> case = Case("vgg8", "", "own", (0, 1), 8, "none", True, "sgd", 0.02, "cosine", 8, 4, 1)
        >>> net, data = build("vgg8", 2), (torch.rand(8, 3, 32, 32), torch.arange(8) % 2)
        >>> front = find_layers(net, data[0][:2])[:3]
        >>> [moment] = train(case, net, data, front=front, keep=[2])
        >>> look_at(case, net, front, data, moment, steps=4).done
        True
    """
    net.load_state_dict(moment.network)
    net.train().requires_grad_(True)
    optimizer = make_optimizer(case, net.parameters())
    optimizer.load_state_dict(copy.deepcopy(moment.optimizer))
    freeze(net, front, [optimizer])
    look, still = SecondLook(net, optimizer, front, steps), Stillness(net, front)
    for step in range(moment.step, moment.step + steps):
        x, y = batch_at(case, data, step)
        losses = []
        still.hold()
        for model, stepper in ((net, optimizer), (look.model, look.optimizer)):
            for group in stepper.param_groups:
                group["lr"] = learning_rate(case, step, case.steps)
            losses.append(F.cross_entropy(model(x), y))
            stepper.zero_grad()
            losses[-1].backward()
            stepper.step()
        look.note(*losses, stepped=True)
    still.end()
    return look


def look_again(case: Case, data: str | Path, weights: str | Path) -> dict[str, Any]:
    """Train a case in full, shortened, and with fronts held; look again at each of these, and release what is released.

    Args:
        case: The case.
        data: Folder of the images or sentences.
        weights: Folder of the weights.

    Returns:
        The case; the accuracy of full training, in percent, and that of shortened training by its share of the steps;
        ``inputs`` ``[fronts, inputs]`` of the start predictor, from a probe; and of each front its depth, what a step
        costs with it held, relative to full training, its accuracy if it is held to the end, the gain and the error of
        the second look, and the accuracy if it was released after that, where it was.
    """
    setup = set_up(case, data, weights)
    net, layers, train_set = setup.net, setup.layers, setup.data
    start = copy.deepcopy(net.state_dict())

    def finished() -> float:
        return evaluate(net, setup.validation)["accuracy"]

    inputs, costs = _probed(case, net, layers, train_set)
    net.load_state_dict(start)
    train(case, net, train_set)
    found: dict[str, Any] = {"case": case.asdict(), "full": finished(), "shortened": {}, "fronts": []}
    found["inputs"] = [[float(f"{value:.6g}") for value in row] for row in inputs.tolist()]
    for share in SHORTENED:
        net.load_state_dict(start)
        train(case, net, train_set, round(share * case.steps))
        found["shortened"][str(share)] = finished()
    for depth in sorted({max(1, round(share * (len(layers) - 1))) for share in DEPTHS}):
        net.load_state_dict(start)
        [moment] = train(case, net, train_set, front=layers[:depth], keep=[round(FROM * case.steps)])
        front = {"depth": depth, "cost": costs[depth - 1], "accuracy": finished(), "released": None}
        look = look_at(case, net, layers[:depth], train_set, moment, look_length(case.steps))
        front |= {"gain": look.gain, "error": look.error}
        if look.gain + look.error > 0:  # by far most of what any rule would release
            state = copy.deepcopy(look.model.state_dict()), look.optimizer.state_dict()
            train(case, net, train_set, moment=Moment(moment.step + look.steps, *state))
            front["released"] = finished()
        found["fronts"].append(front)
    return found


def _probed(case: Case, net: torch.nn.Module, layers: list[Layer], data: Images) -> tuple[Tensor, list[float]]:
    """What the start predictor sees of each front, and what a step costs with it held; the network is used up."""
    with StepFlopCounter(net) as counter:
        x, y = batch_at(case, data, 0)
        F.cross_entropy(net(x), y).backward()
    flops, names = layer_flops(layers, counter), [layer.name for layer in layers]
    costs = [
        flops_when_frozen(flops, counter.flops, names[: depth + 1]).total / counter.flops.total
        for depth in range(len(layers) - 1)
    ]
    body = slice(len(layers) - 1)
    weights = WeightSampler(net, layers)(torch.empty(len(layers), 1024))[body]
    steps = max(LEAST, probe_length(case.steps))
    probe = probe_gradients(case, net, layers, data, steps, train_statistics=True)
    sizes = torch.tensor([float(layer.size) for layer in layers])
    shift = float(probe["shift"][-1])
    return start_inputs(probe["gradients"][:, body], weights, torch.tensor(costs), sizes, case.steps, shift), costs


def judged(cases: list[dict[str, Any]]) -> Table:
    """What became of the fronts, by how the copy's loss compared with that of the model, in standard errors.

    Example:
        >>> from smartfrz_lightning.outcomes.look_again import judged
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
        >>> from smartfrz_lightning.outcomes.look_again import Ending
        >>> Ending(held=0.6, stays=0.6, points=1.0, flops=0.65, above=4.0).above
        4.0
    """

    held: float
    stays: float
    points: float
    flops: float
    above: float


def ending(
    case: dict[str, Any],
    predictor: StartPredictor,
    threshold: float = CHECKED,
    firm: float = FIRM,
    some: float = SOME,
) -> Ending:
    """What :class:`~smartfrz_lightning.SmartFreezeCallback` comes to, with the recorded fronts to choose from.

    Where a part of a front stays, the end is taken from the run in which that part alone was held from the start; where
    all is released of a front whose end was not recorded for that, it is taken from full training.

    Args:
        case: As :func:`look_again` returns it.
        predictor: The start predictor.
        threshold: The least likelihood of no harm at which a front is held.
        firm: See :func:`~smartfrz_lightning.engine.second_look.how_much_stays`.
        some: The same.

    Example:
        >>> from smartfrz_lightning.outcomes.look_again import ending
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> from smartfrz_lightning.predictor.start_inputs import INPUTS
        >>> case = {"case": {"steps": 200}, "full": 80.0, "shortened": {"0.5": 70.0, "0.7": 76.0}}
        >>> case |= {"inputs": [[0.0] * len(INPUTS)] * 2, "fronts": []}
        >>> ending(case, StartPredictor.load())
        Ending(held=0.0, stays=0.0, points=0.0, flops=1.0, above=0.0)
    """
    sure = predictor(torch.tensor(case["inputs"])).sigmoid().tolist()
    fronts = case["fronts"]
    likelihoods = [sure[one["depth"] - 1] for one in fronts]
    held = choose_front([one["cost"] for one in fronts], likelihoods, threshold)
    if not held:
        return Ending(0.0, 0.0, 0.0, 1.0, 0.0)
    front, steps = fronts[held - 1], case["case"]["steps"]
    looking = look_length(steps) / steps
    stays = how_much_stays(likelihoods[:held], front["gain"], front["error"], firm=firm, some=some)
    spent = FROM * front["cost"] + looking * (1 + front["cost"])
    spent += (1 - FROM - looking) * (fronts[stays - 1]["cost"] if stays else 1.0)
    released = front["released"] if front["released"] is not None else case["full"]
    accuracy = fronts[stays - 1]["accuracy"] if stays else released
    plain = sorted([(float(share), one) for share, one in case["shortened"].items()] + [(1.0, case["full"])])
    at, curve = zip(*plain, strict=True)
    frontier = float(np.interp(spent, at, np.maximum.accumulate(curve)))
    kept = fronts[stays - 1]["depth"] if stays else 0
    return Ending(front["depth"] / len(sure), kept / len(sure), accuracy - case["full"], spent, accuracy - frontier)


def endings(cases: list[dict[str, Any]], predictor: StartPredictor) -> Table:
    """How the cases end by several rules.

    Example:
        >>> from smartfrz_lightning.outcomes.look_again import RULES, endings
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> from smartfrz_lightning.predictor.start_inputs import INPUTS
        >>> case = {"case": {"steps": 200}, "full": 80.0, "shortened": {"0.5": 70.0, "0.7": 76.0}}
        >>> case |= {"inputs": [[0.0] * len(INPUTS)] * 2, "fronts": []}
        >>> endings([case, case], StartPredictor.load()).row_count == len(RULES)
        True
    """
    columns = "held from", "firm", "some", "all stays", "a part", "none", "vs full, points", "worst", "lost 2 points"
    table = Table(*columns, "FLOPs", "above the frontier")
    for threshold, firm, some in RULES:
        found = [ending(case, predictor, threshold, firm, some) for case in cases]
        points, held = [one.points for one in found], [one for one in found if one.held]
        table.add_row(
            *(f"{value:g}" for value in (threshold, firm, some)),
            str(sum(one.stays == one.held for one in held)),
            str(sum(0 < one.stays < one.held for one in held)),
            str(sum(not one.stays for one in held)),
            "{:+.1f} ± {:.1f}".format(*interval(points)),
            f"{min(points):+.1f}",
            str(sum(one < -HARMLESS for one in points)),
            f"{sum(one.flops for one in found) / len(found):.2f}",
            "{:+.1f} ± {:.1f}".format(*interval([one.above for one in found])),
        )
    return table


def main(
    cases: str | None = None,
    data: str = "data",
    weights: str = "data/weights",
    output: str = "looks.jsonl",
    groups: list[str] | None = None,
    shortest: int = 0,
    longest: int = 200,
    most: int | None = None,
    judge: str | None = None,
    predictor: str | None = None,
) -> None:
    """Record second looks, or judge what is recorded.

    Args:
        cases: File of groups of cases to draw, or a condensed file of recorded ones.
        data: Folder with a folder for each of the cases' ``data``.
        weights: Folder of the networks' weights.
        output: File of the looks, a line each.
        groups: Only these, by name.
        shortest: Only cases of at least so many steps.
        longest: Only cases of at most so many steps.
        most: Only so many cases, drawn at random.
        judge: Print what the looks in this file come to, and record nothing.
        predictor: File of the start predictor by which they are judged; the shipped one by default.
    """
    console = Console()
    if judge:
        recorded = [json.loads(line) for line in Path(judge).read_text().splitlines()]
        console.print(judged(recorded))
        console.print(endings(recorded, StartPredictor.load(predictor or SHIPPED_START)))
        return
    if cases is None:
        raise ValueError("cases=None: give a file of cases, such as configs/outcomes/images.yaml, or --judge")
    if Path(cases).suffix == ".jsonl":
        drawn = [one.outcome.case for one in load_examples(cases)]
    else:
        named = yaml.safe_load(Path(cases).read_text())
        drawn = list(draw_cases([group for name, group in named.items() if groups is None or name in groups]))
        random.Random(0).shuffle(drawn)
    drawn = [case for case in drawn if shortest <= case.steps <= longest][:most]
    file = Path(output)
    lines = file.read_text().splitlines() if file.is_file() else []
    done = {json.dumps(json.loads(line)["case"]) for line in lines}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress, file.open("a") as out:
        for case in progress.track([case for case in drawn if json.dumps(case.asdict()) not in done]):
            out.write(json.dumps(look_again(case, data, weights)) + "\n")
            out.flush()


if __name__ == "__main__":
    auto_cli(main)
