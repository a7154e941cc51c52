"""Images that fit in memory: a folder a class, or scikit-learn's digits.

Needs the extra ``vision``.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from smartfrz_lightning.experiments.byte_images import ByteImages, ByteImagesDataModule
from smartfrz_lightning.extras import require

require("torchvision", "vision")

from torchvision.datasets import ImageFolder  # noqa: E402
from torchvision.transforms import v2  # noqa: E402


class ImageFolderDataModule(ByteImagesDataModule):
    """Small images in ``root/train/<class>/*`` and ``root/test/<class>/*``, read once and kept in memory.

    Args:
        root: The folder.
        batch_size: Images a batch.
        image_size: Height and width that images are stored at, and padded-and-cropped to in training. Photographs
            want the size of the network, such as 224.
        train_per_class: Take only so many training images of each class, the first by file name; all if ``None``.
        test_per_class: The same for test images.
        classes: Take only these classes, numbered in this order; all if ``None``.
        invert: Whether to invert the brightness of all images.
        kwargs: Further arguments of ``ByteImagesDataModule``.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: On ``fit``: a class of ``classes`` has no folder, or train and test have different classes.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        image_size: int = 32,
        train_per_class: int | None = None,
        test_per_class: int | None = None,
        classes: list[str] | None = None,
        invert: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size, **kwargs)
        for part in ("train", "test"):
            if not (Path(root) / part).is_dir():
                raise FileNotFoundError(
                    f"root={root!r} has no folder {part!r}: it needs train/<class> and test/<class>"
                )
        self.root = Path(root)
        self.image_size = image_size
        self.per_class = {"train": train_per_class, "test": test_per_class}
        self.invert = invert
        self.classes = classes

    def read(self, part: str) -> ByteImages:
        folder = ImageFolder(self.root / part)
        names = self.classes or ImageFolder(self.root / "train").classes
        if self.classes is None and names != folder.classes:
            different = sorted(set(names) ^ set(folder.classes))
            raise ValueError(f"root={str(self.root)!r}: only one of train and test has the classes {different}")
        unknown = set(names) - set(folder.classes)
        if unknown:
            raise ValueError(f"classes={self.classes}: no folder {sorted(unknown)} in {self.root / part}")
        resize = v2.Resize((self.image_size, self.image_size), antialias=True)
        images, labels = [], []
        for label, name in enumerate(names):
            paths = sorted(path for path, target in folder.samples if target == folder.class_to_idx[name])
            for path in paths[: self.per_class[part]]:
                images.append(resize(v2.functional.pil_to_tensor(folder.loader(path))))
                labels.append(label)
        stored = torch.stack(images)
        return ByteImages(v2.functional.invert(stored) if self.invert else stored, torch.tensor(labels))


class DigitsDataModule(LightningDataModule):
    """The 1,797 handwritten digits that come with scikit-learn, enlarged from 8 x 8 pixels; a fifth validates.

    Args:
        batch_size: Images a batch.
        size: Pixels along an edge.
        channels: The same image in so many.

    Raises:
        ValueError: One of them is less than 1.
    """

    def __init__(self, batch_size: int = 32, size: int = 32, channels: int = 1) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("size", size), ("channels", channels)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.batch_size, self.size, self.channels = batch_size, size, channels

    def setup(self, stage: str) -> None:
        require("sklearn", "vision")
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
        images = torch.nn.functional.interpolate(images, size=self.size, mode="bilinear")
        images = images.expand(-1, self.channels, -1, -1)
        everything = TensorDataset(images, torch.tensor(labels))
        generator = torch.Generator().manual_seed(0)
        self._train, self._val = torch.utils.data.random_split(everything, [0.8, 0.2], generator)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self._train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._val, 256)
