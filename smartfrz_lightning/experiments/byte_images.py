"""Small images kept in memory as bytes; augmentation and normalisation happen on the device of training."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_convert

from smartfrz_lightning.extras import require

require("torchvision", "vision")

from torchvision.transforms import v2  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels."""


class ByteImages(TensorDataset):
    """Images ``[n, channels, height, width]`` as bytes, in whole batches: one by one takes far longer; and labels."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[indices]


class ByteImagesDataModule(LightningDataModule, ABC):
    """Base of data modules whose images fit in memory; a subclass says in ``read`` what they are.

    Training images are cropped and flipped; then all are resized, if asked for, and normalised. This is done batch by
    batch on the device that trains.

    Args:
        batch_size: Images a batch.
        resize: Height and width that the network gets; those of the stored images if ``None``.
        mean: Of the normalisation, a value a channel; that of ImageNet.
        std: Of the normalisation.
        augment: What is done to training images: ``"crop"`` and flip, ``"flip"`` alone, or ``"none"``.

    Raises:
        ValueError: ``augment`` is none of these.
    """

    def __init__(
        self,
        batch_size: int = 128,
        resize: int | None = None,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
        augment: Literal["crop", "flip", "none"] = "crop",
    ) -> None:
        super().__init__()
        if augment not in ("crop", "flip", "none"):
            raise ValueError(f"augment={augment!r}: must be 'crop', 'flip' or 'none'")
        self.augment = augment
        self.batch_size = batch_size
        self.resize = resize
        self._normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
        self._data: dict[str, ByteImages] = {}

    @abstractmethod
    def read(self, part: str) -> ByteImages:
        """The images of ``"train"`` or ``"test"``."""

    def setup(self, stage: str) -> None:
        if not self._data:
            self._data = {part: self.read(part) for part in ("train", "test")}

    def train_dataloader(self) -> DataLoader:
        data = self._data["train"]
        whole = len(data) >= self.batch_size  # fewer images are one short batch
        return DataLoader(data, self.batch_size, shuffle=True, drop_last=whole, collate_fn=default_convert)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._data["test"], 2 * self.batch_size, collate_fn=default_convert)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        if self.trainer is not None and self.trainer.training and self.augment != "none":
            images = crop_and_flip(images, crop=self.augment == "crop")
        if self.resize is not None:
            images = v2.functional.resize(images, [self.resize, self.resize], antialias=True)
        images = self._normalize(images)
        if self.trainer is not None:  # the Trainer converted the batch when its images were bytes still
            images = self.trainer.precision_plugin.convert_input(images)
        return images, labels


def crop_and_flip(images: Tensor, crop: bool = True) -> Tensor:
    """Pad each image by an eighth of its size, crop it back at random, if asked for, and flip it at random."""
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
