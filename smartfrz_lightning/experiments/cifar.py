"""CIFAR-10 and CIFAR-100 as torchvision stores or downloads them. Needs the extra ``vision``."""

from typing import Any, Literal

import torch

from smartfrz_lightning.experiments.byte_images import ByteImages, ByteImagesDataModule
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
        kwargs: Further arguments of ``ByteImagesDataModule``.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size, **kwargs)
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
