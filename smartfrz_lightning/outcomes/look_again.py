r"""Try the second look on recorded kinds of cases: would it have kept the fronts that do no harm, and only those?

    python -m smartfrz_lightning.outcomes.look_again --cases configs/outcomes/images.yaml --output looks.jsonl \
        --groups '[vgg8, vgg8_cifar10]' --most 14
    python -m smartfrz_lightning.outcomes.look_again --judge looks.jsonl

Started again, it goes on with the cases that are missing. Needs the extra ``benchmark``.
"""

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from smartfrz_lightning.engine.second_look import FROM, SHARE, SecondLook, to_release
from smartfrz_lightning.engine.stillness import Stillness
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.layers.tracer import find_layers
from smartfrz_lightning.outcomes.case import Case, draw_cases
from smartfrz_lightning.outcomes.examples import load_examples
from smartfrz_lightning.outcomes.fitting import HARMLESS
from smartfrz_lightning.outcomes.networks import build, image_size, normalisation
from smartfrz_lightning.outcomes.tasks import image_task
from smartfrz_lightning.outcomes.training import (
    Images,
    Moment,
    batch_at,
    evaluate,
    learning_rate,
    make_optimizer,
    train,
)

DEPTHS = (0.4, 0.6, 0.8)
"""Of the fronts, as shares of the layers before the head."""


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
    """Train a case in full and with fronts held, and look again at each of them.

    Args:
        case: Of images.
        data: Folder of the images.
        weights: Folder of the weights.

    Returns:
        The case, the accuracy of full training in percent, and of each front its depth, its accuracy, and the gain and
        error of the second look.
    """
    train_set, validation = image_task(case, data, *normalisation(case.network), image_size(case.network))
    torch.manual_seed(case.seed)
    file = Path(weights) / f"{case.weights}.safetensors" if case.weights else None
    net = build(case.network, len(case.classes), file)
    start, layers = copy.deepcopy(net.state_dict()), find_layers(net, train_set[0][: case.batch_size])
    train(case, net, train_set)
    found: dict[str, Any] = {"case": case.asdict(), "full": evaluate(net, validation)["accuracy"], "fronts": []}
    for depth in sorted({max(1, round(share * (len(layers) - 1))) for share in DEPTHS}):
        net.load_state_dict(start)
        [moment] = train(case, net, train_set, front=layers[:depth], keep=[round(FROM * case.steps)])
        accuracy = evaluate(net, validation)["accuracy"]
        look = look_at(case, net, layers[:depth], train_set, moment, round(SHARE * case.steps))
        found["fronts"].append({"depth": depth, "accuracy": accuracy, "gain": look.gain, "error": look.error})
    return found


def judged(cases: list[dict[str, Any]]) -> Table:
    """What the rule of the second look would have done with each front, by network.

    Example:
        >>> from smartfrz_lightning.outcomes.look_again import judged
        >>> fronts = [{"depth": 4, "accuracy": 76.0, "gain": 0.05, "error": 0.01}]
        >>> judged([{"case": {"network": "vgg8", "weights": "own"}, "full": 80.0, "fronts": fronts}]).row_count
        2
    """
    table = Table("network", "fronts", "harmful, of these released", "harmless, of these kept", "kept: vs full, points")
    kinds = sorted({case["case"]["network"] for case in cases})
    for kind in [*kinds, "all"]:
        rows = [
            (front["accuracy"] - case["full"], to_release(front["gain"], front["error"]))
            for case in cases
            for front in case["fronts"]
            if kind in (case["case"]["network"], "all")
        ]
        harmful = [released for points, released in rows if points < -HARMLESS]
        harmless = [not released for points, released in rows if points >= -HARMLESS]
        kept = [points for points, released in rows if not released]
        mean = f"{sum(kept) / len(kept):+.1f}, worst {min(kept):+.1f}" if kept else "–"
        told = f"{sum(harmful)} of {len(harmful)}", f"{sum(harmless)} of {len(harmless)}"
        table.add_row(kind, str(len(rows)), *told, mean)
    return table


def main(
    cases: str | None = None,
    data: str = "data",
    weights: str = "data/weights",
    output: str = "looks.jsonl",
    groups: list[str] | None = None,
    longest: int = 200,
    most: int | None = None,
    judge: str | None = None,
) -> None:
    """Record second looks, or judge what is recorded.

    Args:
        cases: File of groups of cases to draw, or a condensed file of recorded ones.
        data: Folder with a folder for each of the cases' ``data``.
        weights: Folder of the networks' weights.
        output: File of the looks, a line each.
        groups: Only these, by name.
        longest: Only cases of at most so many steps.
        most: Only so many cases, drawn at random.
        judge: Print what the looks in this file come to, and record nothing.
    """
    console = Console()
    if judge:
        console.print(judged([json.loads(line) for line in Path(judge).read_text().splitlines()]))
        return
    if cases is None:
        raise ValueError("cases=None: give a file of cases, such as configs/outcomes/images.yaml, or --judge")
    if Path(cases).suffix == ".jsonl":
        drawn = [one.outcome.case for one in load_examples(cases)]
    else:
        named = yaml.safe_load(Path(cases).read_text())
        drawn = list(draw_cases([group for name, group in named.items() if groups is None or name in groups]))
        random.Random(0).shuffle(drawn)
    drawn = [case for case in drawn if case.steps <= longest][:most]
    file = Path(output)
    lines = file.read_text().splitlines() if file.is_file() else []
    done = {json.dumps(json.loads(line)["case"]) for line in lines}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress, file.open("a") as out:
        for case in progress.track([case for case in drawn if json.dumps(case.asdict()) not in done]):
            out.write(json.dumps(look_again(case, data, weights)) + "\n")
            out.flush()


if __name__ == "__main__":
    auto_cli(main)
