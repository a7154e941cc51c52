"""What the start predictor sees of each prefix: gradients of a probe in numbers that mean the same in every network."""

import torch
from torch import Tensor

INPUTS = ("depth", "depth_squared", "front_to_all", "left", "shift")
"""Names of the inputs of ``start_inputs``, in order."""

_TINY = 1e-9
SHIFT_FLOOR = 0.03
"""Nats below which the statistics of a network's first norm count as unmoved."""


def relative_gradients(gradients: Tensor, weights: Tensor) -> Tensor:
    """How much each layer wants to move: the norm of its gradients relative to that of its weights.

    It is the root mean square over batches. Relative gradient norms scale learning rates in Lee et al. (2023,
    "Surgical fine-tuning improves adaptation to distribution shifts").

    Args:
        gradients: ``[batches, layers, sample]``.
        weights: ``[layers, sample]``, the same sample.

    Returns:
        ``[layers]``.
    """
    norms = torch.linalg.norm(weights, dim=-1).clamp(min=_TINY)
    return gradients.square().sum(-1).mean(0).sqrt() / norms


def start_inputs(gradients: Tensor, weights: Tensor, parameters: Tensor, shift: float = 0.0) -> Tensor:
    """Describe every prefix of a network: the first layer, the first two, and so on to all before the head.

    - ``depth``: share of the layers that the prefix has; ``depth_squared``;
    - ``front_to_all``: mean logarithm of the relative gradients in the prefix minus that in all layers;
    - ``left``: logarithm of the share of the parameters that goes on training;
    - ``shift``: logarithm of how far the images' statistics lie from those that the network came with.

    Args:
        gradients: ``[batches, layers, sample]``, sampled as by
            ``WeightSampler``, without the head.
        weights: ``[layers, sample]``, the weights of the same sample.
        parameters: ``[layers + 1]``: number of parameters of each layer, and of the rest.
        shift: As by ``statistics_shift``; 0 if it is not known.

    Returns:
        ``[layers, inputs]``, the inputs named by ``INPUTS``.
    """
    layers = gradients.shape[1]
    gradients, weights = gradients.double(), weights.double()
    logs = relative_gradients(gradients, weights).clamp(min=_TINY).log()
    # What has no gradient, or weights of zero, tells nothing: it counts as the mean of the others.
    telling = (gradients != 0).any(-1).any(0) & (weights != 0).any(-1)
    if telling.any():
        logs = torch.where(telling, logs, logs[telling].mean())
    number = torch.arange(1, layers + 1)
    depth = number / layers
    left = 1 - parameters.double().cumsum(0)[:-1] / parameters.double().sum()
    columns = [
        depth,
        depth.square(),
        logs.cumsum(0) / number - logs.mean(),
        left.clamp(min=1e-6).log(),
        torch.full((layers,), max(float(shift), SHIFT_FLOOR)).log(),
    ]
    return torch.stack([column.double() for column in columns], dim=1).float()
