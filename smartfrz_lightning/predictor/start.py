"""The start predictor: p(safe) of freezing a prefix from the first step on."""

import math

import torch
from torch import Tensor

from smartfrz_lightning.predictor.logistic import LogisticPredictor
from smartfrz_lightning.predictor.weights import SHIPPED

INPUTS = ("depth", "depth_squared", "front_to_all", "left", "shift")
"""Names of the inputs of ``start_inputs``, in order."""

_TINY = 1e-9
SHIFT_FLOOR = 0.03
"""Nats below which the statistics of a network's first norm count as unmoved."""


def relative_gradients(gradients: Tensor, weights: Tensor) -> Tensor:
    """How much each layer wants to move: the norm of its gradients relative to that of its weights.

    It is the root mean square over batches. Relative gradient norms scale learning rates in Lee et al. (2023,
    "Surgical fine-tuning improves adaptation to distribution shifts").
    """
    norms = torch.linalg.norm(weights, dim=-1).clamp(min=_TINY)
    return gradients.square().sum(-1).mean(0).sqrt() / norms


def start_inputs(gradients: Tensor, weights: Tensor, parameters: Tensor, shift: float = 0.0) -> Tensor:
    """Describe every prefix of a network: the first layer, the first two, and so on to all before the head.

    - ``depth``: share of the layers that the prefix has; ``depth_squared``;
    - ``front_to_all``: mean logarithm of the relative gradients in the prefix minus that in all layers;
    - ``left``: logarithm of the share of the parameters that goes on training;
    - ``shift``: logarithm of how far the images' statistics lie from those that the network came with.

    Gradients are ``[batches, layers, sample]`` without the head, weights ``[layers, sample]`` of the same sample,
    ``parameters`` how many each layer has, and the rest; the shift is 0 if it is not known.
    """
    layers = gradients.shape[1]
    gradients, weights = gradients.double(), weights.double()
    logs = relative_gradients(gradients, weights).clamp(min=_TINY).log()
    # What has no gradient, or weights of zero, tells nothing: it counts as the mean of the others.
    telling = (gradients != 0).any(-1).any(0) & (weights != 0).any(-1)
    if telling.any():
        logs = torch.where(telling, logs, logs[telling].mean())
    number = torch.arange(1, layers + 1)
    depth = number.float() / layers
    left = 1 - parameters.double().cumsum(0)[:-1] / parameters.double().sum()
    columns = [
        depth,
        depth.square(),
        logs.cumsum(0) / number - logs.mean(),
        left.clamp(min=1e-6).log(),
        torch.full((layers,), max(float(shift), SHIFT_FLOOR), dtype=torch.float).log(),
    ]
    return torch.stack([column.double() for column in columns], dim=1).float()


class StartPredictor(LogisticPredictor):
    """A logistic regression on what a probe shows of a prefix; a ``shift`` up to ``shift_floor`` says nothing."""

    inputs = INPUTS
    kind = "smartfrz-start-predictor"
    version = 2
    shipped = SHIPPED / "start.safetensors"

    def __init__(self, shift_floor: float = -math.inf) -> None:
        super().__init__(shift_floor=shift_floor)
        self.shift_floor = shift_floor

    def forward(self, inputs: Tensor) -> Tensor:
        """As in ``LogisticPredictor``."""
        return super().forward(torch.cat([inputs[:, :-1], inputs[:, -1:].clamp(min=self.shift_floor)], 1))
