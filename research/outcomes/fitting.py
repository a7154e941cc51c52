"""Fit a start predictor to recorded cases, and try it on kinds of networks that it has not seen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from research.outcomes.examples import Example
from smartfrz_lightning.extras import require
from smartfrz_lightning.predictor.start import INPUTS, StartPredictor

require("sklearn", "vision")

from sklearn.linear_model import LogisticRegression  # noqa: E402

HARMLESS = 2.0
"""Points of accuracy below full training that still count as no harm: about twice the noise of 1,000 images."""


def harmless(example: Example, tolerance: float = HARMLESS) -> Tensor:
    """``[recorded fronts]``: 1 where holding the front did no harm, in the order of depth.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.fitting import harmless
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> harmless(cases[0]).shape, float(harmless(cases[0], tolerance=100.0).min())
        (torch.Size([5]), 1.0)
    """
    return torch.tensor([float(example.gain(run) >= -tolerance) for _, run in sorted(example.held.items())])


def recorded(example: Example) -> Tensor:
    """``[recorded fronts]``: which rows of the inputs belong to them.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.fitting import recorded
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> recorded(cases[0]).tolist() == [depth - 1 for depth in sorted(cases[0].held)]
        True
    """
    return torch.tensor(sorted(example.held)) - 1


def fit(
    examples: Sequence[Example], tolerance: float = HARMLESS, strength: float = 0.3, inputs: Sequence[str] = INPUTS
) -> StartPredictor:
    """Train a start predictor.

    Args:
        examples: What it learns from.
        tolerance: Points below full training that count as no harm.
        strength: Inverse of the regularisation of the logistic regression.
        inputs: What it looks at; the weights of the others are zero.

    Raises:
        ValueError: All prefixes of the examples do harm, or none does.
    """
    rows = torch.cat([example.inputs[recorded(example)] for example in examples])
    labels = torch.cat([harmless(example, tolerance) for example in examples])
    if labels.min() == labels.max():
        raise ValueError(f"all {len(labels)} prefixes of the examples have one label: record more cases")
    predictor = StartPredictor()
    _standardise(predictor, rows)
    used = torch.tensor([float(name in inputs) for name in INPUTS])
    standard = (rows - predictor.mean) / predictor.scale * used
    logistic = LogisticRegression(C=strength).fit(standard.numpy(), labels.numpy())
    predictor.score.weight.data.copy_(torch.from_numpy(logistic.coef_) * used)
    predictor.score.bias.data.copy_(torch.from_numpy(logistic.intercept_))
    return predictor.eval().requires_grad_(False)


def _standardise(predictor: StartPredictor, rows: Tensor) -> None:
    predictor.mean.copy_(rows.mean(0))
    spread = rows.std(0)
    predictor.scale.copy_(torch.where(spread < 1e-6, 1.0, spread))  # an input that is the same everywhere says nothing


def out_of_family(examples: Sequence[Example], **how: object) -> list[Tensor]:
    """Likelihoods ``[fronts]`` for each example, by predictors that have not seen its kind of network.

    Args:
        examples: Cases of several families of networks; pretrained and from scratch count as two.
        how: Arguments of ``fit``.

    Example:
        >>> from dataclasses import replace
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.fitting import out_of_family
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> for case in cases[::2]:  # so that there is another family in any case
        ...     case.outcome.case = replace(case.outcome.case, network="other")
        >>> likelihoods = out_of_family(cases, inputs=["depth", "front_to_all"])
        >>> len(likelihoods) == len(cases)
        True
    """
    found: dict[int, Tensor] = {}
    for family in sorted({example.family for example in examples}):
        predictor = fit([one for one in examples if one.family != family], **how)  # type: ignore[arg-type]
        found |= {n: predictor(one.inputs).sigmoid() for n, one in enumerate(examples) if one.family == family}
    return [found[number] for number in range(len(examples))]
