"""Images that fit in memory, with crop-and-flip augmentation: a folder a class, or scikit-learn's digits.

Needs the extra ``vision``.
"""

from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from smartfrz_lightning.extras import require

require("torchvision", "vision")

from torchvision.datasets import ImageFolder  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

_SHIFTS = {
    None: lambda image: image,
    "invert": v2.functional.invert,
    "hue": lambda image: v2.functional.adjust_hue(image, 0.5),
}


class _Images(Dataset):
    """Images kept as bytes ``[n, channels, height, width]``, made into whole batches: one by one takes far longer."""

    def __init__(self, images: Tensor, labels: Tensor, normalize: v2.Transform, augment: bool) -> None:
        self.images, self.labels, self.normalize, self.augment = images, labels, normalize, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        images = self.images[indices]
        return self.normalize(crop_and_flip(images) if self.augment else images), self.labels[indices]


def crop_and_flip(images: Tensor) -> Tensor:
    """Pad each image by an eighth of its size, crop it back at random and flip it at random.

    Args:
        images: ``[batch, channels, height, width]``.

    Returns:
        The same shape; every image draws for itself, from torch's generator.
    """
    batch, channels, height, width = images.shape
    pad = height // 8, width // 8
    padded = torch.nn.functional.pad(images, (pad[1], pad[1], pad[0], pad[0]))
    rows = torch.randint(2 * pad[0] + 1, (batch, 1)) + torch.arange(height)
    columns = torch.randint(2 * pad[1] + 1, (batch, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(batch, 1) < 0.5, columns, columns.flip(1))
    each = torch.arange(batch)[:, None, None, None], torch.arange(channels)[:, None, None]
    return padded[each[0], each[1], rows[:, None, :, None], columns[:, None, None, :]]


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


class ImageFolderDataModule(LightningDataModule):
    """Small images in ``root/train/<class>/*`` and ``root/test/<class>/*``, read once and kept in memory.

    Args:
        root: The folder.
        batch_size: Images a batch.
        image_size: Height and width that images are resized to, and padded-and-cropped to in training.
        train_per_class: Take only so many training images of each class, the first by file name; all if ``None``.
        test_per_class: The same for test images.
        classes: Take only these classes, numbered in this order; all if ``None``.
        shift: Change all images: ``"invert"`` their brightness or turn their ``"hue"`` by half the colour circle.
        mean: Of the normalisation, a value a channel; that of ImageNet.
        std: Of the normalisation.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A class of ``classes`` has no folder.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        image_size: int = 32,
        train_per_class: int | None = None,
        test_per_class: int | None = None,
        classes: list[str] | None = None,
        shift: Literal["invert", "hue"] | None = None,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        for part in ("train", "test"):
            if not (Path(root) / part).is_dir():
                raise FileNotFoundError(
                    f"root={root!r} has no folder {part!r}: it needs train/<class> and test/<class>"
                )
        self.root = Path(root)
        self.batch_size = batch_size
        self.image_size = image_size
        self.per_class = {"train": train_per_class, "test": test_per_class}
        self.shift = shift
        self.classes = classes
        self._normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
        self._data: dict[str, _Images] = {}

    def setup(self, stage: str) -> None:
        if not self._data:
            self._data = {part: self._read(part) for part in ("train", "test")}

    def _read(self, part: str) -> _Images:
        folder = ImageFolder(self.root / part)
        names = self.classes or folder.classes
        unknown = set(names) - set(folder.classes)
        if unknown:
            raise ValueError(f"classes={self.classes}: no folder {sorted(unknown)} in {self.root / part}")
        resize = v2.Resize((self.image_size, self.image_size), antialias=True)
        images, labels = [], []
        for label, name in enumerate(names):
            paths = sorted(path for path, target in folder.samples if target == folder.class_to_idx[name])
            for path in paths[: self.per_class[part]]:
                images.append(_SHIFTS[self.shift](resize(v2.functional.pil_to_tensor(folder.loader(path)))))
                labels.append(label)
        return _Images(torch.stack(images), torch.tensor(labels), self._normalize, augment=part == "train")

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self._data["train"], self.batch_size, shuffle=True, drop_last=True, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._data["test"], 2 * self.batch_size, collate_fn=_as_it_is)


class DigitsDataModule(LightningDataModule):
    """The 1,797 handwritten digits that come with scikit-learn, at 32 x 32 pixels in one channel; a fifth validates.

    Args:
        batch_size: Images a batch.
    """

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        require("sklearn", "vision")
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
        images = torch.nn.functional.interpolate(images, size=32, mode="bilinear")
        everything = TensorDataset(images, torch.tensor(digits.target))
        generator = torch.Generator().manual_seed(0)
        self._train, self._val = torch.utils.data.random_split(everything, [0.8, 0.2], generator)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self._train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._val, 256)
