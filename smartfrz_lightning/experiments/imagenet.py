"""ImageNet, or any large folder of images, read from disk while training. Needs the extra ``vision``."""

from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from smartfrz_lightning.experiments.byte_images import MEAN, STD
from smartfrz_lightning.extras import require

require("torchvision", "vision")

from torchvision.datasets import ImageFolder  # noqa: E402
from torchvision.transforms import v2  # noqa: E402


class ImageNetDataModule(LightningDataModule):
    """Images in ``root/train/<class>/*`` and ``root/val/<class>/*``, as torchvision unpacks ImageNet.

    Training takes random crops of 8 % to 100 % of an image and flips them; validation resizes the shorter side to 8/7
    of ``image_size`` and crops the centre (the usual protocol of ImageNet).

    Args:
        root: The folder.
        batch_size: Images a batch, in every process.
        image_size: Height and width that the network gets.
        num_workers: Processes that read images; the crops that they draw follow from the seed and their number.
        mean: Of the normalisation, a value a channel; that of ImageNet.
        std: Of the normalisation.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: On ``fit``: ``train`` and ``val`` have different classes.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 32,
        image_size: int = 224,
        num_workers: int = 4,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
    ) -> None:
        super().__init__()
        for part in ("train", "val"):
            if not (Path(root) / part).is_dir():
                raise FileNotFoundError(f"root={root!r} has no folder {part!r}: it needs train/<class> and val/<class>")
        self.root = Path(root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        self._transforms = {
            "train": v2.Compose([v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip(), *last]),
            "val": v2.Compose([v2.Resize(image_size * 8 // 7, antialias=True), v2.CenterCrop(image_size), *last]),
        }

    def setup(self, stage: str) -> None:
        self._data = {part: ImageFolder(self.root / part, self._transforms[part]) for part in ("train", "val")}
        one, other = (set(self._data[part].classes) for part in ("train", "val"))
        if one != other:
            raise ValueError(
                f"root={str(self.root)!r}: only one of train and val has the classes {sorted(one ^ other)}"
            )

    def train_dataloader(self) -> DataLoader:
        whole = len(self._data["train"]) >= self.batch_size  # fewer images are one short batch
        return self._loader("train", shuffle=True, drop_last=whole)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def _loader(self, part: str, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
        return DataLoader(
            self._data[part],
            self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
