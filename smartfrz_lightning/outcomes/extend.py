r"""Teach a start predictor one more input, from cases in which it was recorded.

    python -m smartfrz_lightning.outcomes.extend '[configs/outcomes/results/second_look.jsonl]' \
        old.safetensors new.safetensors

What the predictor knew stays as it is. Needs the extra ``benchmark``.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.console import Console
from torch import Tensor

from smartfrz_lightning.history.tensor_file import read_tensors
from smartfrz_lightning.outcomes.fronts import Fronts, load_fronts
from smartfrz_lightning.outcomes.learn import log_loss
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.start_inputs import INPUTS

SILENT = {"shift": math.log(0.15)}
"""Values up to which an input says nothing: that at which it tells most of the training cases, left out in turn."""


def extend(
    predictor: StartPredictor, cases: Sequence[Fronts], name: str, zero: float, strength: float = 1.0
) -> StartPredictor:
    """A predictor that looks at one more input, of which it learns the weight; all else stays as it is.

    So what is known of some input in few cases can be learned without forgetting what many others taught.

    Args:
        predictor: A logistic regression.
        cases: What the weight is learned from.
        name: The input.
        zero: Its value up to which it says nothing.
        strength: Inverse of the regularisation.

    Raises:
        ValueError: The predictor looks at it already, or is no logistic regression.

    Example:
        >>> from smartfrz_lightning.outcomes.extend import extend
        >>> from smartfrz_lightning.outcomes.fronts import load_fronts
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> cases = load_fronts("configs/outcomes/results/second_look.jsonl")
        >>> extend(StartPredictor(["depth", "front_to_all"]), cases, "shift", zero=-3.5).inputs
        ['depth', 'front_to_all', 'shift']
    """
    if name in predictor.inputs or predictor.hidden:
        raise ValueError(f"name={name!r}: the predictor looks at it already, or is no logistic regression")
    column = INPUTS.index(name)
    odds = torch.cat([predictor(one.inputs).detach() for one in cases])
    values = (torch.cat([one.inputs[:, column] for one in cases]) - zero).clamp(min=0)
    labels = torch.cat([one.harmless for one in cases]).float()
    weight = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        own = F.binary_cross_entropy_with_logits(odds + weight * values, labels, reduction="sum")
        total = own + weight.square() / (2 * strength)
        total.backward()
        return total

    optimizer.step(loss)
    longer = StartPredictor([*predictor.inputs, name], floors={**predictor.floors, name: zero})
    longer.mean.copy_(torch.cat([predictor.mean, torch.tensor([zero])]))
    longer.scale.copy_(torch.cat([predictor.scale, torch.ones(1)]))
    longer.score.weight.data.copy_(torch.cat([predictor.score.weight, weight.detach()[None, None]], 1))
    longer.score.bias.data.copy_(predictor.score.bias)
    return longer.eval().requires_grad_(False)


def left_out(predictor: StartPredictor, cases: Sequence[Fronts], name: str, zero: float) -> list[Tensor]:
    """Likelihoods ``[F]`` for each case, by a predictor that was extended without it.

    Example:
        >>> from smartfrz_lightning.outcomes.extend import left_out
        >>> from smartfrz_lightning.outcomes.fronts import load_fronts
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> cases = load_fronts("configs/outcomes/results/second_look.jsonl")[:4]
        >>> len(left_out(StartPredictor(["depth"]), cases, "shift", zero=-3.5))
        4
    """
    found = []
    for number, one in enumerate(cases):
        others = [*cases[:number], *cases[number + 1 :]]
        found.append(extend(predictor, others, name, zero)(one.inputs).sigmoid())
    return found


def main(cases: list[str], old: str, new: str, name: str = "shift", zero: float | None = None) -> None:
    """Extend, and say what it brings on cases that were left out in turn.

    Args:
        cases: Files of cases to learn from, condensed or of second looks; only those that begin with trained weights.
        old: File of the predictor as it is.
        new: File of the one that looks at one input more.
        name: The input.
        zero: Value up to which it says nothing; that of the shipped predictor by default.
    """
    if name not in SILENT and zero is None:
        raise ValueError(f"name={name!r}: say up to which value, zero=..., it tells nothing")
    zero = SILENT[name] if zero is None else zero
    known = {one.case: one for file in cases for one in load_fronts(file) if one.case.weights}
    every, predictor, console = list(known.values()), StartPredictor.load(old), Console()
    gains = [one.gains for one in every]
    before = [predictor(one.inputs).sigmoid() for one in every]
    for text, likelihoods in (("as it was", before), ("extended, left out", left_out(predictor, every, name, zero))):
        loss, auroc = log_loss(likelihoods, gains)
        console.print(f"{text}: log loss {loss:.3f}, AUROC {auroc:.3f}, {len(every)} cases")
    longer = extend(predictor, every, name, zero)
    console.print(f"weight of {name}: {float(longer.score.weight[0, -1]):.3f}")
    about = read_tensors(Path(old))[1]["about"]
    longer.save(new, **{**about, "extended_by": name, "extended_from": len(every)})


if __name__ == "__main__":
    auto_cli(main)
