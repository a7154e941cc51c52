"""The slope: whether the front of a network wants to move less than its back, by a few gradients."""

import torch
from torch import Tensor


def relative_gradients(gradients: Tensor, weights: Tensor) -> Tensor:
    """The norm of each layer's mean gradient, relative to that of its weights.

    The mean over batches is estimated without bias, from products of different batches: what is noise of a batch alone
    does not count. It is the relative gradient norm by which Lee et al. (2023, "Surgical fine-tuning improves
    adaptation to distribution shifts") scale learning rates.

    Args:
        gradients: ``[batches, layers, sample]``, at least two batches.
        weights: ``[layers, sample]``, the same sample.

    Returns:
        ``[layers]``.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.predictor.slope import relative_gradients
        >>> gradients = torch.tensor([[[1.0], [1.0]], [[1.0], [-1.0]]])  # one layer drifts, the other jitters
        >>> relative_gradients(gradients, weights=torch.full((2, 1), 2.0))
        tensor([0.5000, 0.0000])
    """
    count = len(gradients)
    if count < 2:
        raise ValueError(f"gradients of {count} batches: at least 2 are needed to tell drift from noise")
    products = gradients.sum(0).square().sum(-1) - gradients.square().sum(-1).sum(0)
    mean = (products / (count * (count - 1))).clamp(min=0).sqrt()
    return mean / torch.linalg.norm(weights, dim=-1).clamp(min=1e-12)


def slope(relative: Tensor) -> float:
    """Average of the first two thirds of the layers over that of the last third.

    Args:
        relative: ``[layers]`` of :func:`relative_gradients`, without the head.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.predictor.slope import slope
        >>> slope(torch.tensor([1.0, 2.0, 3.0]))
        0.5
    """
    back = max(1, len(relative) // 3)
    front = relative[:-back]
    return float(front.mean() / relative[-back:].mean().clamp(min=1e-12)) if len(front) else float("inf")
