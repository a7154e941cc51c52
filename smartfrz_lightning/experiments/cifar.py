"""CIFAR-10 and CIFAR-100 as torchvision stores or downloads them. Needs the extra ``vision``."""

from typing import Literal

import torch

from smartfrz_lightning.experiments.byte_images import MEAN, STD, ByteImages, ByteImagesDataModule
from smartfrz_lightning.extras import require

require("torchvision", "vision")

from torchvision import datasets  # noqa: E402


class CifarDataModule(ByteImagesDataModule):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009).

    Args:
        root: Folder that has, or gets, the files that torchvision downloads.
        dataset: ``"CIFAR10"`` or ``"CIFAR100"``.
        download: Let torchvision download what is missing.
        batch_size: Images a batch; 32 as in the paper.
        resize: Height and width that the network gets, such as 224 for ImageNet's models; 32 if ``None``.
        mean: Of the normalisation, a value a channel; that of ImageNet.
        std: Of the normalisation.
        augment: What is done to training images: ``"crop"`` and flip, ``"flip"`` alone, or ``"none"``.

    Raises:
        OSError: On ``fit``: the data cannot be downloaded.
        RuntimeError: On ``fit``: the data are not there or damaged, and ``download`` is off.
    """

    def __init__(
        self,
        root: str,
        dataset: Literal["CIFAR10", "CIFAR100"] = "CIFAR10",
        download: bool = False,
        batch_size: int = 32,
        resize: int | None = None,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
        augment: Literal["crop", "flip", "none"] = "crop",
    ) -> None:
        super().__init__(batch_size, resize, mean, std, augment)
        self.root = root
        self.dataset = dataset
        self.download = download

    def prepare_data(self) -> None:
        self._open("train", self.download)

    def read(self, part: str) -> ByteImages:
        data = self._open(part, download=False)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return ByteImages(images, torch.tensor(data.targets))

    def _open(self, part: str, download: bool) -> datasets.CIFAR10:
        kind = {"CIFAR10": datasets.CIFAR10, "CIFAR100": datasets.CIFAR100}[self.dataset]
        return kind(self.root, train=part == "train", download=download)
