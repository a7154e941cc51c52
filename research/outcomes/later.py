"""Fit the predictor of the later stage to what freezing cost in recorded runs, and judge it on networks left out.

    python -m research.outcomes.later research/results/moments.jsonl
    python -m research.outcomes.later research/results/moments.jsonl --write predictor_weights/later.safetensors

Of every recorded run, each prefix at each moment is an example. Logistic regressions on groups of inputs, and the
paper's attention over the window of snapshots, are compared on networks that they have not seen. Needs the extra
``benchmark``.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from research.outcomes.branches import MARGIN, Branch
from research.outcomes.later_examples import Example, recordings
from smartfrz_lightning.predictor.later import INPUTS, LaterPredictor
from smartfrz_lightning.stages.later import EARLIEST
from smartfrz_lightning.stages.start import DEEPEST

PLACE = ["depth", "left"]
COMPARED: dict[str, list[str]] = {
    "nothing": [],
    "depth and progress": PLACE,
    "… and movement": [*PLACE, "moved"],
    "… and gradients": [*PLACE, "gradient", "agreement"],
    "… and length": [*PLACE, "length"],
    "… and epochs": [*PLACE, "epochs"],
    "… and slowing": [*PLACE, "slowed"],
    "… and trial": [*PLACE, "trial"],
    "… and loss": list(INPUTS),
    "… and loss, relative to the first batch's": [*PLACE, "first"],
    "… and loss and slowing": [*INPUTS, "slowed"],
    "… and loss and length": [*INPUTS, "length"],
    "… and loss and epochs": [*INPUTS, "epochs"],
    "… and loss and rates": [*INPUTS, "rates"],
    "… and loss and trial": [*INPUTS, "trial"],
    "all of these": [*INPUTS, "slowed", "moved", "gradient", "agreement", "length", "epochs"],
}
STRENGTH = 0.1
"""Inverse of the regularisation of the regressions, on inputs of unit spread."""

SURE = (0.75, 0.85)
"""p(safe) from which prefixes are looked at."""

THRESHOLDS = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
BINS = (0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 1.01)

_SURE = [f"p ≥ {bound:g}: how many, safe, points" for bound in SURE]
SCORES = ("log loss", "AUROC", "within a moment", *_SURE)
BY_NETWORK = ("network left out", "runs", "prefixes", "safe", *_SURE)
MARGINS = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Points that freezing may cost, by which prefixes count as safe."""

POLICY = ("p ≥", "points", "worst run", "runs that lose more than 1", "FLOPs")
BY_MARGIN = ("points to lose at most", *POLICY[1:3], POLICY[4])
CALIBRATION = ("p(safe)", "prefixes", "mean p(safe)", "were safe")


def regression(x: Tensor, safe: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Mean, scale and weights of the inputs, and the bias, of a logistic regression.

    Args:
        x: ``[examples, inputs]``.
        safe: ``[examples]``.
    """
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-6)
    model = LogisticRegression(C=STRENGTH, max_iter=3000).fit(((x - mean) / scale).numpy(), safe.numpy())
    return mean, scale, torch.from_numpy(model.coef_[0]).float(), float(model.intercept_[0])


def by_line(names: Sequence[str], margin: float = MARGIN) -> Callable:
    """By a regression on these inputs, how likely freezing a prefix costs at most so many points."""

    def said(train: list[Example], over: list[Branch], test: list[Example]) -> Tensor:
        safe = torch.tensor([float(one.branch.points >= -margin) for one in train])
        if not names:
            return safe.mean().expand(len(test))
        x, there = (torch.tensor([[one.inputs[name] for name in names] for one in part]) for part in (train, test))
        if set(names) <= {*INPUTS, "slowed", "first"}:
            seen = [
                {"slowed": one.window[-1, 0], "first": one.first, **dict(zip(INPUTS, one.inputs.tolist(), strict=True))}
                for one in over
            ]
            x = torch.cat([x, torch.tensor([[float(one[name]) for name in names] for one in seen])])
            safe = torch.cat([safe, torch.ones(len(over))])
        mean, scale, weight, bias = regression(x, safe)
        return ((there - mean) / scale @ weight + bias).sigmoid()

    return said


def out_of_family(data: Sequence[Example], over: Sequence[Branch], said: Callable) -> np.ndarray:
    """p(safe) of every example, by what was learned from the other networks."""
    found = torch.zeros(len(data))
    for left_out in sorted({one.branch.network for one in data}):
        rest = [one for one in data if one.branch.network != left_out]
        chosen = [number for number, one in enumerate(data) if one.branch.network == left_out]
        at_end = [branch for branch in over if branch.network != left_out]
        found[chosen] = said(rest, at_end, [data[number] for number in chosen])
    return found.numpy()


def scores(data: Sequence[Example], said: np.ndarray) -> list[str]:
    """Log loss, AUROC, AUROC within a moment; of what is called safe: how many, how many are, points and FLOPs."""
    was = np.array([one.branch.safe for one in data])
    instant = np.array([one.branch.instant for one in data])
    mixed = [one for one in np.unique(instant) if 0 < was[instant == one].mean() < 1]
    within = np.mean([roc_auc_score(was[instant == one], said[instant == one]) for one in mixed])
    row = [f"{log_loss(was, said):.3f}", f"{roc_auc_score(was, said):.3f}", f"{within:.2f}"]
    return [*row, *sure(data, said)]


def sure(data: Sequence[Example], said: np.ndarray) -> list[str]:
    """Of what is called safe: how many, how many are, and what they cost on average, in points."""
    points, found = np.array([one.branch.points for one in data]), []
    for bound in SURE:
        chosen = points[said >= bound]
        found.append(f"{len(chosen)}: {(chosen >= -MARGIN).mean():.0%}, {chosen.mean():+.1f}" if len(chosen) else "0")
    return found


def policy(data: Sequence[Example], said: np.ndarray, threshold: float) -> list[tuple[float, float]]:
    """Points and relative FLOPs of every run, if at each recorded moment the deepest safe prefix freezes.

    What a prefix costs that grows later is put together from the branches: that of the first moment, and what the
    deeper one of the later moment costs more than the first one would there.

    Args:
        data: Examples of all runs.
        said: p(safe) of each.
        threshold: The least p(safe).
    """
    found = []
    for run in sorted({one.run for one in data}):
        points, cost, depth = 0.0, 1.0, 0.0
        own = [(one, p) for one, p in zip(data, said, strict=True) if one.run == run]
        for instant in sorted({one.branch.instant for one, _ in own}):
            there = [(one, p) for one, p in own if one.branch.instant == instant]
            if there[0][0].progress < EARLIEST:
                continue
            safe = [one for one, p in there if p >= threshold and one.inputs["depth"] <= DEEPEST + 0.02]
            deepest = max(safe, key=lambda one: one.inputs["depth"], default=None)
            if deepest is None or deepest.inputs["depth"] <= depth:
                continue
            before = next((one for one, _ in there if one.inputs["depth"] == depth), None)
            if depth and before is None:
                continue
            points += deepest.branch.points - (before.branch.points if before else 0.0)
            cost += deepest.cost - (before.cost if before else 1.0)
            depth = deepest.inputs["depth"]
        found.append((points, cost))
    return found


def comparison(data: Sequence[Example], over: Sequence[Branch]) -> list[list[str]]:
    """A row for each set of inputs, on networks left out: name, then ``scores``."""
    return [[name, *scores(data, out_of_family(data, over, by_line(names)))] for name, names in COMPARED.items()]


def policies(data: Sequence[Example], over: Sequence[Branch]) -> list[list[str]]:
    """A row a threshold, on networks left out: mean points, worst run, runs that lose over the margin, FLOPs."""
    said = out_of_family(data, over, by_line(list(INPUTS)))
    rows = []
    for threshold in THRESHOLDS:
        points, worst, lose, cost = _summary(policy(data, said, threshold))
        rows.append([f"{threshold:g}", points, worst, lose, cost])
    return rows


def by_margin(data: Sequence[Example], over: Sequence[Branch]) -> list[list[str]]:
    """A row a margin, with a predictor of its own, on networks left out: mean points, worst run, FLOPs."""
    rows = []
    for margin in MARGINS:
        said = out_of_family(data, over, by_line(list(INPUTS), margin))
        points, worst, _, cost = _summary(policy(data, said, SURE[-1]))
        rows.append([f"{margin:g}", points, worst, cost])
    return rows


def _summary(found: Sequence[tuple[float, float]]) -> tuple[str, str, str, str]:
    points, cost = np.array(found).T
    return f"{points.mean():+.1f}", f"{points.min():+.1f}", str((points < -MARGIN).sum()), f"{cost.mean():.2f}"


def calibration(data: Sequence[Example], over: Sequence[Branch]) -> list[list[str]]:
    """A row a range of p(safe), on networks left out: how many prefixes, mean p(safe), and how many were safe."""
    said, was = out_of_family(data, over, by_line(list(INPUTS))), np.array([one.branch.safe for one in data])
    rows = []
    for low, high in pairwise(BINS):
        chosen = (said >= low) & (said < high)
        shares = [f"{said[chosen].mean():.2f}", f"{was[chosen].mean():.2f}"] if chosen.any() else ["–", "–"]
        rows.append([f"{low:g} to {min(high, 1):g}", str(chosen.sum()), *shares])
    return rows


def by_network(data: Sequence[Example], over: Sequence[Branch]) -> list[list[str]]:
    """A row a network, by what was learned from the others: runs, prefixes, how many were safe, and ``sure``."""
    said, network = out_of_family(data, over, by_line(list(INPUTS))), np.array([one.branch.network for one in data])
    rows = []
    for name in np.unique(network):
        own = [one for one in data if one.branch.network == name]
        runs, safe = len({one.run for one in own}), np.mean([one.branch.safe for one in own])
        rows.append([str(name), str(runs), str(len(own)), f"{safe:.0%}", *sure(own, said[network == name])])
    return rows


def fit(data: Sequence[Example], over: Sequence[Branch]) -> LaterPredictor:
    """The predictor that all recordings give."""
    known = [one.branch for one in data] + list(over)
    x, safe = torch.stack([one.inputs for one in known]), torch.tensor([float(one.safe) for one in known])
    mean, scale, weight, bias = regression(x, safe)
    predictor = LaterPredictor()
    predictor.mean.copy_(mean)
    predictor.scale.copy_(scale)
    with torch.no_grad():
        predictor.score.weight.copy_(weight[None])
        predictor.score.bias.fill_(bias)
    return predictor


def main(recorded: str, write: str | None = None) -> None:
    """Compare on networks left out, and fit.

    Args:
        recorded: File of recorded runs, a line of JSON each.
        write: File of the predictor, fitted to all of them.
    """
    torch.set_num_threads(1)
    data, over = recordings(recorded)
    share = np.mean([one.branch.safe for one in data])
    title = f"networks left out: {len({one.run for one in data})} runs, {len(data)} prefixes, {share:.0%} safe"
    show(title, ["inputs", *SCORES], comparison(data, over))
    show("if the safest is frozen from two fifths on, networks left out", POLICY, policies(data, over))
    show(f"the same from {SURE[-1]:g} on, by the points to lose", BY_MARGIN, by_margin(data, over))
    show("calibration, networks left out", CALIBRATION, calibration(data, over))
    show("each network left out", BY_NETWORK, by_network(data, over))
    if write:
        families = sorted({one.branch.network for one in data})
        runs = len({one.run for one in data})
        fit(data, over).save(write, runs=runs, prefixes=len(data), networks=families, margin=MARGIN)


def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)


if __name__ == "__main__":
    auto_cli(main)
