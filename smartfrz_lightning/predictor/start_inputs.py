"""What the start predictor sees of each front: gradients of a probe in numbers that mean the same in every network."""

import math

import torch
from torch import Tensor

INPUTS = (
    "depth", "depth_squared", "body", "front_to_all", "largest_to_all", "front", "front_agrees", "back_agrees", "cost",
    "left", "steps", "shift",
)  # fmt: skip
"""Names of the inputs of :func:`start_inputs`, in order."""

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


def start_inputs(
    gradients: Tensor, weights: Tensor, cost: Tensor, parameters: Tensor, steps: float, shift: float = 0.0
) -> Tensor:
    """Describe every front of a network: the first layer, the first two, and so on to all before the head.

    Of each layer counts the *relative gradient*, the root mean square over the batches of its gradient's norm, divided
    by the norm of its weights. It keeps the noise of a batch: over the few batches of a probe this is steadier than the
    norm of the mean gradient.

    - ``depth``: share of the layers that the front has; ``depth_squared``; ``body``: 1 if it is all before the head;
    - ``front_to_all``: mean logarithm of the relative gradients in the front minus that in all layers;
      ``largest_to_all``: of the largest one in the front; ``front``: the mean logarithm itself;
    - ``front_agrees``, ``back_agrees``: how much the gradients of different batches agree, 0 to 1: the square of the
      mean gradient (without bias) over the mean of the squares, on average over the layers in and behind the front;
    - ``cost``: what a step costs with the front held, relative to one in which everything trains;
    - ``left``: logarithm of the share of the parameters that goes on training;
    - ``steps``: logarithm of the length of the run;
    - ``shift``: logarithm of how far the images' statistics lie from those that the network came with.

    Args:
        gradients: ``[batches, layers, sample]``, sampled as by
            :class:`~smartfrz_lightning.history.sampling.WeightSampler`, without the head; two batches or more.
        weights: ``[layers, sample]``, the weights of the same sample.
        cost: ``[layers]``: what a step costs if the front ends with this layer, relative to full training.
        parameters: ``[layers + 1]``: number of parameters of each layer, and of the rest.
        steps: Length of the run.
        shift: As by :func:`~smartfrz_lightning.history.statistics_shift.statistics_shift`; 0 if it is not known.

    Returns:
        ``[layers, inputs]``, the inputs named by :data:`INPUTS`.

    Raises:
        ValueError: There are fewer than two batches.
    """
    batches, layers = gradients.shape[:2]
    if batches < 2:
        raise ValueError(f"gradients of {batches} batches: at least 2 are needed to tell drift from noise")
    gradients = gradients.double()
    squares = gradients.square().sum(-1)
    relative = relative_gradients(gradients, weights.double())
    of_mean = (gradients.sum(0).square().sum(-1) - squares.sum(0)) / (batches * (batches - 1))
    agree = (of_mean / squares.mean(0).clamp(min=_TINY**2)).clamp(0, 1)
    # What has no gradient, or weights of zero, tells nothing: it counts as the mean of the others.
    telling = (squares.mean(0) > 0) & (weights != 0).any(-1)
    logs, number = relative.clamp(min=_TINY).log(), torch.arange(1, layers + 1)
    if telling.any():
        logs, agree = (torch.where(telling, values, values[telling].mean()) for values in (logs, agree))
    depth = number / layers
    front = logs.cumsum(0) / number
    behind = ((agree.sum() - agree.cumsum(0))[:-1] / (layers - number[:-1])).clamp(0, 1)
    behind = torch.cat([behind, agree[-1:]])  # behind all of them is the head, of which nothing is known
    left = 1 - parameters.double().cumsum(0)[:-1] / parameters.double().sum()
    columns = {
        "depth": depth,
        "depth_squared": depth.square(),
        "body": (number == layers).double(),
        "front_to_all": front - logs.mean(),
        "largest_to_all": logs.cummax(0).values - logs.mean(),
        "front": front,
        "front_agrees": agree.cumsum(0) / number,
        "back_agrees": behind,
        "cost": cost.double(),
        "left": left.clamp(min=1e-6).log(),
        "steps": torch.full((layers,), float(steps)).log(),
        "shift": torch.full((layers,), max(float(shift), SHIFT_FLOOR)).log(),
    }
    return torch.stack([columns[name].double() for name in INPUTS], dim=1).float()


def unshifted(inputs: Tensor) -> Tensor:
    """The same fronts of images that are of the kind which the network has seen.

    Args:
        inputs: ``[fronts, inputs]`` of :func:`start_inputs`.
    """
    same = inputs.clone()
    same[:, INPUTS.index("shift")] = math.log(SHIFT_FLOOR)
    return same
