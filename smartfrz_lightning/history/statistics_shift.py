"""How far what a network is given lies from what its running statistics were taken of."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from smartfrz_lightning.private.pytorch import RunningNorm


def statistics_shift(model: nn.Module, norms: Sequence[str], before: Mapping[str, Tensor]) -> float:
    """How far the statistics of recent batches lie from those that a network came with.

    That is the Kullback-Leibler divergence of a normal distribution with the mean and variance of the batches from one
    with the running mean and variance, of the median channel, in the first norm whose running statistics have moved.
    New classes of the same kind of images hardly show in it (0.02 to 0.06 on CIFAR); other brightness, colours or
    sharpness do.

    Args:
        model: It has seen some batches in training mode.
        norms: Names of its BatchNorms, in forward order.
        before: Its buffers before these batches, by name.

    Returns:
        Nats; 0 if no statistics moved, as in a network without BatchNorm.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.history.statistics_shift import statistics_shift
        >>> net, x = nn.Sequential(nn.BatchNorm1d(2)), torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
        >>> before = {name: tensor.clone() for name, tensor in net.named_buffers()}
        >>> _ = net(x)
        >>> same = statistics_shift(net, ["0"], before)
        >>> _ = net.load_state_dict(before, strict=False), net(x + 2)
        >>> round(same, 2), round(statistics_shift(net, ["0"], before), 1)  # half of the square of 2
        (0.0, 2.0)
    """
    for name in norms:
        norm = model.get_submodule(name)
        if isinstance(norm, RunningNorm) and norm.running_mean is not None and norm.running_var is not None:
            batches = _batches(norm, before.get(f"{name}.num_batches_tracked"))
            moved = _share(norm, batches)
            if moved > 0:
                return _divergence(norm, before[f"{name}.running_mean"], before[f"{name}.running_var"], moved)
    return 0.0


def _batches(norm: RunningNorm, before: Tensor | None) -> int:
    if before is None or norm.num_batches_tracked is None:
        return 0
    return int(norm.num_batches_tracked) - int(before)


def _share(norm: RunningNorm, batches: int) -> float:
    """How much of the running statistics is of these batches."""
    if batches < 1:
        return 0.0
    if norm.momentum is None:  # a mean over all batches that ever were
        return batches / int(norm.num_batches_tracked)  # type: ignore[arg-type]
    return 1 - (1 - norm.momentum) ** batches


def _divergence(norm: RunningNorm, mean: Tensor, variance: Tensor, moved: float) -> float:
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance = mean.double(), variance.double().clamp(min=0) + norm.eps
    of_batches = mean + (norm.running_mean.double() - mean) / moved
    spread = (variance + (norm.running_var.double() + norm.eps - variance) / moved).clamp(min=norm.eps)
    network, recent = Normal(mean, variance.sqrt()), Normal(of_batches, spread.sqrt())
    value = float(kl_divergence(recent, network).median())
    return value if math.isfinite(value) else 0.0
