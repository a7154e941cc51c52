"""Linear centred kernel alignment (CKA): how alike two representations of the same examples are."""

import torch
from torch import Tensor


def centered_gram(features: Tensor) -> Tensor:
    """Centred Gram matrix of the examples.

    Args:
        features: ``[examples, ...]``, any shape; all but the first dimension are flattened.

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
    if examples < 2:
        raise ValueError(f"features of {examples} examples: CKA compares examples and needs at least 2")
    flat = flat - flat.mean(0)
    return flat @ flat.T


def unbiased_gram(features: Tensor) -> Tensor:
    r"""Gram matrix of the examples whose inner products are unbiased estimates of HSIC.

    That is the estimator of Song et al. (2012, "Feature selection via dependence maximization", Eq. 5): the diagonal is
    zero, rows and columns are centred as if it were not there. Of few examples, ``centered_gram`` finds any two
    representations alike.

    Args:
        features: ``[examples, ...]``, at least 4 examples.

    Returns:
        ``[examples, examples]`` in float64, divided by :math:`\sqrt{n (n - 3)}`, so that those of several batches can
        be joined (Nguyen et al. 2021, "Do wide and deep networks learn the same things?", section 2).

    Examples:
        >>> import torch
        >>> from smartfrz_lightning.similarity.cka import gram_cka, linear_cka, unbiased_gram
        >>> x, y = torch.randn(16, 500), torch.randn(16, 500)  # nothing in common
        >>> bool(linear_cka(x, y) > 0.8), bool(gram_cka(unbiased_gram(x), unbiased_gram(y)).abs() < 0.5)
        (True, True)
    """
    flat = features.detach().reshape(len(features), -1).double()
    n = len(flat)
    if n < 4:
        raise ValueError(f"features of {n} examples: unbiased CKA compares examples and needs at least 4")
    flat = flat - flat.mean(0)  # changes nothing but what is lost to rounding
    gram = (flat @ flat.T).fill_diagonal_(0)
    rows = gram.sum(1) / (n - 2)
    gram = gram - rows - rows[:, None] + rows.sum() / (n - 1)
    return gram.fill_diagonal_(0) / (n * (n - 3)) ** 0.5


def gram_cka(gram_x: Tensor, gram_y: Tensor) -> Tensor:
    """CKA of two representations, from their Gram matrices, centred or unbiased; 0 where one of them is constant.

    Args:
        gram_x: Of any shape.
        gram_y: Of the same.

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
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} examples and y has {len(y)}: CKA compares features of the same examples")
    return gram_cka(centered_gram(x), centered_gram(y))
