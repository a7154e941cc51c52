"""Random crops and flips of whole batches, each image for itself."""

import torch
from torch import Tensor


def crop_and_flip(images: Tensor, crop: bool = True) -> Tensor:
    """Pad each image by an eighth of its size, crop it back at random and flip it at random.

    Args:
        images: ``[batch, channels, height, width]``, on any device.
        crop: Whether to crop, or to flip alone.

    Returns:
        The same shape.
    """
    batch, channels, height, width = images.shape
    draws = torch.rand(batch, 3)  # on the CPU, so that all devices draw alike
    pad = (height // 8, width // 8) if crop else (0, 0)
    padded = torch.nn.functional.pad(images, (pad[1], pad[1], pad[0], pad[0]))
    rows = (draws[:, :1] * (2 * pad[0] + 1)).long() + torch.arange(height)
    columns = (draws[:, 1:2] * (2 * pad[1] + 1)).long() + torch.arange(width)
    columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    each = torch.arange(batch)[:, None, None, None], torch.arange(channels)[:, None, None]
    picked = (*each, rows[:, None, :, None], columns[:, None, None, :])
    return padded[tuple(index.to(images.device) for index in picked)]
