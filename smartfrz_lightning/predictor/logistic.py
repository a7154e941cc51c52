"""LogisticPredictor: log-odds from a few named inputs."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from smartfrz_lightning.predictor.weights import SavedPredictor


class LogisticPredictor(SavedPredictor):
    """A logistic regression that says how likely freezing a prefix is safe, from the inputs that a kind of it names."""

    inputs: ClassVar[tuple[str, ...]]
    mean: Tensor
    scale: Tensor

    def __init__(self, **arguments: float) -> None:
        super().__init__(**arguments)
        self.register_buffer("mean", torch.zeros(len(self.inputs)))
        self.register_buffer("scale", torch.ones(len(self.inputs)))
        self.score = nn.Linear(len(self.inputs), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-odds ``[prefixes]`` that freezing a prefix is safe, from ``[prefixes, inputs]``."""
        return self.score((inputs - self.mean) / self.scale)[:, 0]
