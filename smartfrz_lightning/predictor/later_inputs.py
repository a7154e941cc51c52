"""What the later predictor sees of each prefix, at any moment of a run."""

import torch
from torch import Tensor

INPUTS = ("depth", "left", "loss")
"""Names of the inputs of ``later_inputs``, in order."""

LEAST_LEFT, LEAST_LOSS = 0.02, 0.01


def later_inputs(layers: int, progress: float, loss: float) -> Tensor:
    """Describe every prefix of a network: the first layer, the first two, and so on to all before the head.

    - ``depth``: share of the layers that the prefix has;
    - ``left``: logarithm of the share of the run that is left, as if that were at least 2 %;
    - ``loss``: logarithm of the training loss relative to that of the first batch, as if that were at least 1 %.

    Args:
        layers: Before the head.
        progress: Share of the run that is done.
        loss: Training loss of the latest twentieth of the run, relative to that of the first batch.

    Returns:
        ``[prefixes, inputs]``, the inputs named by ``INPUTS``.
    """
    of_run = torch.tensor([max(1 - progress, LEAST_LEFT), max(loss, LEAST_LOSS)], dtype=torch.double).log10()
    depth = torch.arange(1, layers + 1, dtype=torch.double) / layers
    return torch.cat([depth[:, None], of_run.expand(layers, -1)], 1).float()
