"""Linear centred kernel alignment (CKA): how alike two representations of the same examples are."""

import torch
from torch import Tensor

LEAST_EXAMPLES = 4
"""Of how many examples the unbiased estimate can be computed."""


def unbiased_gram(features: Tensor) -> Tensor:
    r"""Gram matrix of the examples whose inner products are unbiased estimates of HSIC.

    That is the estimator of Song et al. (2012, "Feature selection via dependence maximization", Eq. 5): the diagonal is
    zero, rows and columns are centred as if it were not there. Without that, any two representations of few examples
    are alike. From ``[examples, ...]``, at least 4, it makes ``[examples, examples]`` in float64, divided by
    :math:`\sqrt{n (n - 3)}`, so that those of several batches can be joined (Nguyen et al. 2021, "Do wide and deep
    networks learn the same things?", section 2).
    """
    flat = features.detach().reshape(len(features), -1).double()
    n = len(flat)
    if n < LEAST_EXAMPLES:
        raise ValueError(f"features of {n} examples: unbiased CKA needs at least {LEAST_EXAMPLES}")
    flat = flat - flat.mean(0)  # changes nothing but what is lost to rounding
    gram = (flat @ flat.T).fill_diagonal_(0)
    rows = gram.sum(1) / (n - 2)
    gram = gram - rows - rows[:, None] + rows.sum() / (n - 1)
    return gram.fill_diagonal_(0) / (n * (n - 3)) ** 0.5


def gram_cka(gram_x: Tensor, gram_y: Tensor) -> Tensor:
    """Linear CKA of two representations (paper, Eq. 5; Kornblith et al. 2019), from their Gram matrices.

    That is a scalar of at most 1, in float64; 0 where one of them is constant.
    """
    scale = gram_x.norm() * gram_y.norm()
    return torch.where(scale > 0, (gram_x * gram_y).sum() / scale.clamp_min(1e-300), torch.zeros_like(scale))
