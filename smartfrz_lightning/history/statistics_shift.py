"""How far what a network is given lies from what its running statistics were taken of."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from smartfrz_lightning.private.pytorch import RunningNorm


def statistics_shift(
    model: nn.Module, norms: Sequence[str], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> float:
    """How far the statistics of recent batches lie from those that a network came with.

    That is the Kullback-Leibler divergence of a normal distribution with the mean and variance of the batches from one
    with the running mean and variance, of the median channel, in the first norm whose running statistics have moved.
    New classes of the same kind of images hardly show in it (0.02 to 0.06 on CIFAR); other brightness, colours or
    sharpness do. It is in nats, of buffers before and after some batches in training mode; 0 if no statistics moved, as
    in a network without BatchNorm.
    """
    for name in norms:
        norm, statistics = model.get_submodule(name), [f"{name}.running_mean", f"{name}.running_var"]
        if not isinstance(norm, RunningNorm) or any(key not in after for key in statistics):
            continue
        counts = [int(kept[key]) if (key := f"{name}.num_batches_tracked") in kept else 0 for kept in (before, after)]
        moved = _share(norm, *counts)
        if moved > 0:
            old, new = ([kept[key].double() for key in statistics] for kept in (before, after))
            return _divergence(old, new, moved, norm.eps)
    return 0.0


def _share(norm: RunningNorm, count_before: int, count: int) -> float:
    """How much of the running statistics is of the batches in between."""
    if count <= count_before:
        return 0.0
    if norm.momentum is None:  # a mean over all batches that ever were
        return (count - count_before) / count
    return 1 - (1 - norm.momentum) ** (count - count_before)


def _divergence(before: list[Tensor], after: list[Tensor], moved: float, eps: float) -> float:
    (mean, variance), (new_mean, new_variance) = before, after
    variance = variance.clamp(min=0) + eps
    of_batches = mean + (new_mean - mean) / moved
    spread = (variance + (new_variance + eps - variance) / moved).clamp(min=eps)
    network, recent = Normal(mean, variance.sqrt()), Normal(of_batches, spread.sqrt())
    value = float(kl_divergence(recent, network).median())
    return value if math.isfinite(value) else 0.0
