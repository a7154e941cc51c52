"""Random crops and flips of whole batches, each image for itself."""

import torch
from torch import Tensor


def crop_and_flip(images: Tensor) -> Tensor:
    """Pad each image by an eighth of its size, crop it back at random and flip it at random.

    Args:
        images: ``[batch, channels, height, width]``, on any device.

    Returns:
        The same shape; every image draws for itself, from torch's CPU generator, so that all devices draw alike.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.experiments.augment import crop_and_flip
        >>> crop_and_flip(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 3, 32, 32])
    """
    batch, channels, height, width = images.shape
    pad = height // 8, width // 8
    padded = torch.nn.functional.pad(images, (pad[1], pad[1], pad[0], pad[0]))
    rows = torch.randint(2 * pad[0] + 1, (batch, 1)) + torch.arange(height)
    columns = torch.randint(2 * pad[1] + 1, (batch, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(batch, 1) < 0.5, columns, columns.flip(1))
    each = torch.arange(batch)[:, None, None, None], torch.arange(channels)[:, None, None]
    picked = (*each, rows[:, None, :, None], columns[:, None, None, :])
    return padded[tuple(index.to(images.device) for index in picked)]
