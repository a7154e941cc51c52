"""What the predictor sees of a window of snapshots. The choice is saved with the predictor."""

from typing import Literal, get_args

import torch
from torch import Tensor

Representation = Literal["raw", "displacement"]

# Displacements below this share of the layer's spread count as none.
_FLOOR = 1e-6


def represent(windows: Tensor, lengths: Tensor, representation: Representation) -> Tensor:
    """One vector a snapshot, from windows of sampled weights.

    ``"raw"`` is the paper's: the sampled weights as they are. ``"displacement"`` does not depend on the scale or the
    meaning of single weights, and so carries over to other networks: how far the weights are from those of the first
    and of the latest snapshot of the window, in units of the layer's standard deviation, as logarithms of quantiles of
    the absolute values; half of the vector each.

    Args:
        windows: ``[layers, snapshots, sample_size]``, oldest first, padded at the end.
        lengths: ``[layers]`` snapshots in each window, at least 1.
        representation: ``"raw"`` or ``"displacement"``.

    Returns:
        ``[layers, snapshots, sample_size]``.
    """
    check_representation(representation)
    if representation == "raw":
        return windows
    latest = windows[torch.arange(len(windows)), lengths - 1][:, None]
    spread = latest.std(-1, keepdim=True).clamp_min(1e-12)
    sample_size = windows.shape[-1]
    first_half = sample_size - sample_size // 2
    parts = [
        _log_quantiles((windows - windows[:, :1]) / spread, first_half),
        _log_quantiles((windows - latest) / spread, sample_size // 2),
    ]
    return torch.cat(parts, -1)


def check_representation(representation: str) -> None:
    """Raise ``ValueError`` for an unknown representation."""
    if representation not in get_args(Representation):
        raise ValueError(f"representation={representation!r}: must be one of {get_args(Representation)}")


def _log_quantiles(values: Tensor, count: int) -> Tensor:
    """Evenly spaced quantiles of absolute values, as logarithms brought to about unit scale."""
    ordered = values.abs().sort(-1).values
    positions = torch.linspace(0, values.shape[-1] - 1, count, device=values.device).round().long()
    return (ordered[..., positions] + _FLOOR).log10() / 2 + 1
