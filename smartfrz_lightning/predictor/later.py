"""The later predictor: p(safe) of freezing a prefix from a moment of the run to its end."""

import torch
from torch import Tensor

from smartfrz_lightning.predictor.logistic import LogisticPredictor
from smartfrz_lightning.predictor.weights import SHIPPED

INPUTS = ("depth", "left", "loss")
"""Names of the inputs of ``later_inputs``, in order."""

LEAST_LEFT, LEAST_LOSS = 0.02, 0.01


def later_inputs(layers: int, progress: float, loss: float) -> Tensor:
    """Describe every prefix of a network: the first layer, the first two, and so on to all before the head.

    - ``depth``: share of the layers that the prefix has;
    - ``left``: logarithm of the share of the run that is left, as if that were at least 2 %;
    - ``loss``: logarithm of the training loss of the latest twentieth, relative to that of the start, as if that were
      at least 1 %.
    """
    of_run = torch.tensor([max(1 - progress, LEAST_LEFT), max(loss, LEAST_LOSS)], dtype=torch.double).log10()
    depth = torch.arange(1, layers + 1, dtype=torch.double) / layers
    return torch.cat([depth[:, None], of_run.expand(layers, -1)], 1).float()


class LaterPredictor(LogisticPredictor):
    """A logistic regression on the depth of a prefix, what is left of the run, and how far the loss has fallen."""

    inputs = INPUTS
    kind = "smartfrz-later-predictor"
    shipped = SHIPPED / "later.safetensors"
