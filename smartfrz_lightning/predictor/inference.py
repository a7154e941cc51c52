"""Confidence that layers are ready to be frozen."""

import torch
from torch import Tensor

from smartfrz_lightning.predictor.network import AttentionPredictor


@torch.no_grad()
def freeze_confidence(predictor: AttentionPredictor, windows: Tensor) -> Tensor:
    """Run a predictor over the windows of several layers in one batch, in full precision.

    Args:
        predictor: The predictor.
        windows: ``[layers, snapshots, sample_size]``, oldest first.

    Returns:
        ``[layers]``, between 0 and 1.
    """
    with torch.autocast(windows.device.type, enabled=False):
        return predictor(windows).softmax(-1)[:, 1]
