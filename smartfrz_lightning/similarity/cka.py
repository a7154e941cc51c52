"""Linear centred kernel alignment (CKA): how alike two representations of the same examples are."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def centered_gram(features: Tensor, unbiased: bool = False) -> Tensor:
    """Centred Gram matrix of the examples.

    Args:
        features: ``[examples, ...]``, any shape; all but the first dimension are flattened.
        unbiased: Centre for the unbiased estimator of Song et al. 2012 (diagonal left out); needs 4 examples.

    Returns:
        ``[examples, examples]`` in float64: the terms of CKA differ by many orders of magnitude.

    Examples:
        >>> import torch
        >>> from smartfrz_lightning.similarity.cka import centered_gram
        >>> centered_gram(torch.tensor([[1.0], [3.0]]))
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)
    """
    flat = features.detach().flatten(1).double() if features.ndim > 1 else features.detach().double()[:, None]
    examples = len(flat)
    least = 4 if unbiased else 2
    if examples < least:
        raise ValueError(f"features of {examples} examples: CKA compares examples and needs at least {least}")
    flat = flat - flat.mean(0)
    gram = flat @ flat.T
    if not unbiased:
        return gram
    gram.fill_diagonal_(0)
    means = gram.sum(0) / (examples - 2)
    gram = gram - means[None] - means[:, None] + means.sum() / (examples - 1)
    return gram.fill_diagonal_(0)


def gram_cka(gram_x: Tensor, gram_y: Tensor) -> Tensor:
    """CKA of two representations, from their centred Gram matrices; a scalar, 0 where one of them is constant.

    Examples:
        >>> import torch
        >>> from smartfrz_lightning.similarity.cka import centered_gram, gram_cka
        >>> x, y = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
        >>> float(gram_cka(centered_gram(x), centered_gram(3 * x))), float(gram_cka(centered_gram(x), centered_gram(y)))
        (1.0, 0.0)
    """
    scale = gram_x.norm() * gram_y.norm()
    return torch.where(scale > 0, (gram_x * gram_y).sum() / scale.clamp_min(1e-300), torch.zeros_like(scale))


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Linear CKA of two feature maps of the same examples (paper, Eq. 5; centred, as in Kornblith et al. 2019).

    .. math:: CKA(X, Y) = \|Y^T X\|_F^2 / (\|X^T X\|_F \|Y^T Y\|_F)

    with every feature centred over the examples. It is computed from Gram matrices, so its cost grows with
    ``examples ** 2`` times the number of features, and wide feature maps are no problem.

    Args:
        x: ``[examples, ...]``.
        y: ``[examples, ...]``, its other dimensions may differ from those of ``x``.

    Returns:
        A scalar between 0 and 1, in float64.

    Raises:
        ValueError: The numbers of examples differ, or there are fewer than 2.

    Examples:
        >>> import torch
        >>> from smartfrz_lightning.similarity.cka import linear_cka
        >>> x = torch.randn(16, 3, 8, 8)
        >>> round(float(linear_cka(x, 5 * x + 1)), 6)
        1.0
    """
    _same_examples(x, y)
    return gram_cka(centered_gram(x), centered_gram(y))


class LinearCKA(Metric):
    """Linear CKA that can accumulate over minibatches and processes.

    One update gives exactly ``linear_cka``. Several sum the three inner products of Eq. 5 over the minibatches
    (Nguyen et al. 2021), which is constant in memory, but compares examples within a minibatch only. The plain estimate
    is biased upwards for small batches; ``unbiased=True`` takes that away, as in that paper.

    Args:
        unbiased: Use the unbiased estimator of the inner products (Song et al. 2012); can fall slightly below 0.
        kwargs: Arguments of ``torchmetrics.Metric``.

    Examples:
        >>> import torch
        >>> from smartfrz_lightning.similarity.cka import LinearCKA
        >>> metric = LinearCKA()
        >>> for _ in range(3):
        ...     x = torch.randn(32, 10)
        ...     metric.update(x, 2 * x)
        >>> round(float(metric.compute()), 6)
        1.0
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    xy: Tensor
    xx: Tensor
    yy: Tensor

    def __init__(self, unbiased: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unbiased = unbiased
        for name in ("xy", "xx", "yy"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a minibatch of feature maps, ``[examples, ...]`` each."""
        _same_examples(x, y)
        gram_x, gram_y = centered_gram(x, self.unbiased), centered_gram(y, self.unbiased)
        examples = len(x)
        scale = examples * (examples - 3) if self.unbiased else (examples - 1) ** 2
        self.xy += (gram_x * gram_y).sum() / scale
        self.xx += (gram_x * gram_x).sum() / scale
        self.yy += (gram_y * gram_y).sum() / scale

    def compute(self) -> Tensor:
        """CKA of all that was added; a scalar."""
        return self.xy / (self.xx * self.yy).clamp_min(1e-300).sqrt()


def _same_examples(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} examples and y has {len(y)}: CKA compares features of the same examples")
