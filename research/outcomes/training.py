"""The plain training of a case, all of it or branched off at a step, with a front that freezes or without."""

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research.outcomes.case import Case
from smartfrz_lightning.engine.frozen_norms import RECALIBRATION, RECALIBRATION_SHARE, FrozenNorms
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.layers.layer import Layer

Images = tuple[Tensor, Tensor]


def learning_rate(case: Case, step: int, steps: int) -> float:
    """Of one step of ``steps``: constant, a cosine to zero, a tenth of warm-up and a line to zero, or one cycle.

    Example:
        >>> from research.outcomes.case import Case
        >>> from research.outcomes.training import learning_rate
        >>> case = Case("vgg8", "", "cifar10", (0, 1), 100, "none", True, "sgd", 0.02, "cosine", 50, 16, 1)
        >>> learning_rate(case, 0, 50), round(learning_rate(case, 25, 50), 3)
        (0.02, 0.01)
    """
    if case.schedule == "constant":
        return case.rate
    if case.schedule == "cosine":
        return case.rate * (1 + math.cos(math.pi * step / steps)) / 2
    if case.schedule == "warmup":
        warm = max(1, steps // 10)
        return case.rate * min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    if case.schedule == "onecycle":  # as torch.optim.lr_scheduler.OneCycleLR: up in 30 %, then down, both as a cosine
        warm = 0.3 * steps
        part = step / warm if step < warm else 1 + (step - warm) / (steps - warm)
        return case.rate * max(0.04, (1 - math.cos(math.pi * part)) / 2)
    raise ValueError(f"schedule={case.schedule!r}: one of cosine, constant, warmup, onecycle")


def make_optimizer(case: Case, parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of a case.

    Example:
        >>> from torch import nn
        >>> from research.outcomes.case import Case
        >>> from research.outcomes.training import make_optimizer
        >>> case = Case("vgg8", "", "cifar10", (0, 1), 100, "none", True, "sgd", 0.02, "cosine", 50, 16, 1)
        >>> make_optimizer(case, nn.Linear(2, 2).parameters()).param_groups[0]["momentum"]
        0.9
    """
    if case.optimizer == "sgd":
        return torch.optim.SGD(parameters, case.rate, momentum=0.9, weight_decay=5e-4)
    if case.optimizer == "adamw":
        return torch.optim.AdamW(parameters, case.rate, weight_decay=0.01)
    if case.optimizer == "adam":
        return torch.optim.Adam(parameters, case.rate)
    raise ValueError(f"optimizer={case.optimizer!r}: one of sgd, adamw, adam")


def rate_groups(case: Case, net: nn.Module) -> list[dict[str, Any]]:
    """Groups of an optimizer: the head, which is the last module with parameters, and the rest."""
    head = [module for module in net.modules() if next(module.parameters(recurse=False), None) is not None][-1]
    of_head = set(head.parameters())
    rest = [parameter for parameter in net.parameters() if parameter not in of_head]
    return [{"params": rest, "times": 1.0}, {"params": list(of_head), "times": case.head_rate}]


def batch_at(case: Case, data: Images, step: int) -> Images:
    """The batch of one step: the same in every run of the case.

    Example:
        >>> import torch
        >>> from research.outcomes.case import Case
        >>> from research.outcomes.training import batch_at
        >>> case = Case("vgg8", "", "own", (0, 1), 8, "none", True, "sgd", 0.02, "cosine", 4, 4, 1)
        >>> data = torch.rand(8, 3, 32, 32), torch.arange(8)
        >>> sorted(torch.cat([batch_at(case, data, step)[1] for step in (0, 1)]).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    images, labels = data
    per_epoch = max(1, len(images) // case.batch_size)
    epoch, number = divmod(step, per_epoch)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(case.seed * 1009 + epoch))
    index = order[number * case.batch_size : (number + 1) * case.batch_size]
    x = images[index]
    if case.flips:
        flip = torch.rand(len(x), generator=torch.Generator().manual_seed(case.seed * 7919 + step)) < 0.5
        x = torch.where(flip.to(x.device)[:, None, None, None], x.flip(3), x)
    return x, labels[index]


@dataclass
class Moment:
    """A training as it stood before a step.

    Attributes:
        step: The step.
        network: State dict of the network.
        optimizer: State dict of the optimizer.

    Example:
        >>> from research.outcomes.training import Moment
        >>> Moment(step=3, network={}, optimizer={}).step
        3
    """

    step: int
    network: dict[str, Any]
    optimizer: dict[str, Any]


def train(
    case: Case,
    net: nn.Module,
    data: Images,
    steps: int | None = None,
    front: Sequence[Layer] = (),
    moment: Moment | None = None,
    keep: Collection[int] = (),
    watch: Callable[[int], None] | None = None,
    recalibrate: bool = True,
    losses: list[float] | None = None,
    until: int | None = None,
) -> list[Moment]:
    """Train a network as a case says.

    Args:
        case: The case.
        net: Starts with the weights it has, or with those of ``moment``.
        data: Images and labels.
        steps: Length of the run, over which the schedule is spread; that of the case by default.
        front: Layers that freeze at the beginning of what is trained here; their statistics are measured
            anew as in the engine, unless nothing has trained yet.
        moment: Where to begin.
        keep: Steps before which to keep the training as it stands.
        watch: Called with the number of steps done, before the first and after every step.
        recalibrate: Whether the front had trained before ``moment``, so that its statistics are to be measured anew.
        losses: Gets the loss of every step.
        until: Stop before this step, of the same schedule.

    Returns:
        What was kept.

    Example:
        >>> import torch
        >>> from research.outcomes.case import Case
        >>> from research.outcomes.networks import build
        >>> from research.outcomes.training import train
        >>> case = Case("vgg8", "", "own", (0, 1), 8, "none", True, "sgd", 0.02, "cosine", 4, 4, 1)
        >>> net, data = build("vgg8", 2), (torch.rand(8, 3, 32, 32), torch.arange(8) % 2)
        >>> [kept] = train(case, net, data, keep=[2])
        >>> finished = net[0].weight.clone()
        >>> _ = train(case, net, data, moment=kept)
        >>> net[0].weight.equal(finished)
        True
    """
    total = steps or case.steps
    net.train().requires_grad_(True)
    optimizer = make_optimizer(case, rate_groups(case, net))
    begin = 0
    if moment is not None:
        net.load_state_dict(moment.network)
        optimizer.load_state_dict(copy.deepcopy(moment.optimizer))
        begin = moment.step
    still = FrozenNorms(net)
    if front:
        freeze(net, front, [optimizer])
        still.watch(front)
        batches = int(min(RECALIBRATION, total * RECALIBRATION_SHARE)) if begin and recalibrate else 0
        still.recalibrate([name for layer in front for name in layer.stateful], batches)
    kept = []
    if watch:
        watch(begin)
    last = total if until is None else until
    for step in range(begin, last + 1):
        if step in keep:
            state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
            kept.append(Moment(step, *state))
        if step == last:
            break
        still.keep_still()
        torch.manual_seed(case.seed * 104729 + step)  # of dropout: the same in every branch
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(case, step, total) * group["times"]
        x, y = batch_at(case, data, step)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        if losses is not None:
            losses.append(float(loss.detach()))
        still.batch_done()
        if watch:
            watch(step + 1)
    still.end()
    return kept


@torch.no_grad()
def evaluate(net: nn.Module, data: Images) -> dict[str, float]:
    """Loss and accuracy, in percent, of a finished model.

    Example:
        >>> import torch
        >>> from research.outcomes.training import evaluate
        >>> evaluate(torch.nn.Identity(), (torch.eye(2), torch.tensor([0, 0])))["accuracy"]
        50.0
    """
    net.eval()
    out = torch.cat([net(x) for x in data[0].split(50)])
    right = (out.argmax(1) == data[1]).float().mean()
    return {"loss": float(F.cross_entropy(out, data[1])), "accuracy": 100 * float(right)}
