r"""Try the second look on recorded kinds of cases: would it have kept the fronts that do no harm, and only those?

    python -m smartfrz_lightning.outcomes.look_again --cases configs/outcomes/images.yaml --output looks.jsonl \
        --groups '[vgg8, vgg8_cifar10]' --most 14
    python -m smartfrz_lightning.outcomes.look_again --judge looks.jsonl

Started again, it goes on with the cases that are missing. Needs the extra ``benchmark``.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.console import Console
from torch import Tensor

from smartfrz_lightning.cost.flops import StepFlopCounter
from smartfrz_lightning.cost.layer_flops import front_costs, layer_flops
from smartfrz_lightning.engine.probed_start import LEAST, probe_length
from smartfrz_lightning.engine.second_look import SecondLook, look_begin, look_length
from smartfrz_lightning.engine.stillness import Stillness
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.outcomes.case import Case
from smartfrz_lightning.outcomes.line_by_line import chosen_cases, record_lines
from smartfrz_lightning.outcomes.look_endings import endings, judged
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

    inputs, costs = probed(case, net, layers, train_set)
    net.load_state_dict(start)
    train(case, net, train_set)
    found: dict[str, Any] = {"case": case.asdict(), "full": finished(), "shortened": {}, "fronts": []}
    found["inputs"] = [[float(f"{value:.6g}") for value in row] for row in inputs.tolist()]
    for share in SHORTENED:
        net.load_state_dict(start)
        train(case, net, train_set, round(share * case.steps))
        found["shortened"][str(share)] = finished()
    begin = round(max(look_begin(case.steps), probe_length(case.steps)))
    for depth in sorted({max(1, round(share * (len(layers) - 1))) for share in DEPTHS}):
        net.load_state_dict(start)
        [moment] = train(case, net, train_set, front=layers[:depth], keep=[begin])
        front = {"depth": depth, "cost": costs[depth - 1], "accuracy": finished(), "released": None}
        look = look_at(case, net, layers[:depth], train_set, moment, look_length(case.steps))
        front |= {"gain": look.gain, "error": look.error}
        if look.gain + look.error > 0:  # by far most of what any rule would release
            state = copy.deepcopy(look.model.state_dict()), look.optimizer.state_dict()
            train(case, net, train_set, moment=Moment(moment.step + look.steps, *state))
            front["released"] = finished()
        found["fronts"].append(front)
    return found


def probed(case: Case, net: torch.nn.Module, layers: list[Layer], data: Images) -> tuple[Tensor, list[float]]:
    """What the start predictor sees of each front, and what a step costs with it held; the network is used up.

    Args:
        case: The case.
        net: The network.
        layers: Its layers, the head last.
        data: Images and labels.

    Returns:
        ``[fronts, inputs]``, and as many costs, relative to a step in which everything trains.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.layers import find_layers
        >>> from smartfrz_lightning.outcomes.case import Case
        >>> from smartfrz_lightning.outcomes.look_again import probed
        >>> from smartfrz_lightning.outcomes.networks import build
        >>> case = Case("vgg8", "", "own", (0, 1), 8, "none", True, "sgd", 0.02, "cosine", 100, 4, 1)
        >>> net, data = build("vgg8", 2), (torch.rand(8, 3, 32, 32), torch.arange(8) % 2)
        >>> layers = find_layers(net, data[0][:2])
        >>> inputs, costs = probed(case, net, layers, data)
        >>> len(inputs) == len(costs) == len(layers) - 1, max(costs) < 1
        (True, True)
    """
    with StepFlopCounter(net) as counter:
        x, y = batch_at(case, data, 0)
        F.cross_entropy(net(x), y).backward()
    body = slice(len(layers) - 1)
    costs = front_costs(layer_flops(layers, counter), counter.flops, [layer.name for layer in layers[body]])
    weights = WeightSampler(net, layers)(torch.empty(len(layers), 1024))[body]
    steps = max(LEAST, probe_length(case.steps))
    probe = probe_gradients(case, net, layers, data, steps, train_statistics=True)
    sizes = torch.tensor([float(layer.size) for layer in layers])
    shift = float(probe["shift"][-1])
    return start_inputs(probe["gradients"][:, body], weights, torch.tensor(costs), sizes, case.steps, shift), costs


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
    drawn = chosen_cases(cases, groups, shortest, longest, most)
    record_lines(drawn, output, lambda case: look_again(case, data, weights))


if __name__ == "__main__":
    auto_cli(main)
