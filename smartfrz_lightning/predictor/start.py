"""The start predictor: p(safe) of freezing a prefix from the first step on."""

import math

import torch
from torch import Tensor

from smartfrz_lightning.predictor.logistic import LogisticPredictor
from smartfrz_lightning.predictor.start_inputs import INPUTS
from smartfrz_lightning.predictor.weights import SHIPPED


class StartPredictor(LogisticPredictor):
    """A logistic regression on what a probe shows of a prefix.

    Args:
        shift_floor: Value of the input ``shift`` up to which it says nothing.
    """

    inputs = INPUTS
    kind = "smartfrz-start-predictor"
    version = 2
    shipped = SHIPPED.with_name("start.safetensors")

    def __init__(self, shift_floor: float = -math.inf) -> None:
        super().__init__(shift_floor=shift_floor)
        self.shift_floor = shift_floor

    def forward(self, inputs: Tensor) -> Tensor:
        """As in ``LogisticPredictor``."""
        return super().forward(torch.cat([inputs[:, :-1], inputs[:, -1:].clamp(min=self.shift_floor)], 1))
