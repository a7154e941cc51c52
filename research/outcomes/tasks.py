"""Image tasks of the cases: some classes of a folder, shifted or not. Needs the extra ``vision``."""

import random
from pathlib import Path

import torch
from torch import Tensor

from research.outcomes.case import Case
from smartfrz_lightning.extras import require

require("torchvision", "vision")

from torchvision.datasets.folder import default_loader  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

VALIDATION = 3000
"""Images that every finished model of a case is judged by, at most: test images, and training images left over."""

LONG, OF_LONG = 2000, 10_000
"""Steps from which on that are more, and how many."""

Images = tuple[Tensor, Tensor]


def image_task(
    case: Case, root: str | Path, mean: Tensor, std: Tensor, size: int | None = None
) -> tuple[Images, Images]:
    """Training and validation images ``[n, 3, height, width]`` of a case with their labels, normalised.

    Args:
        case: The case.
        root: Folder of ``<case.data>/train/<class>/*`` and ``test``.
        mean: Of the normalisation, a value a channel.
        std: Of the normalisation.
        size: Height and width that they are resized to, if the network wants another than they have.

    Raises:
        FileNotFoundError: There is no such folder.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from torchvision.io import write_png
        >>> from research.outcomes.case import Case
        >>> from research.outcomes.tasks import image_task
        >>> case = Case("vgg8", "", "own", (0, 1), 4, "invert", True, "sgd", 0.02, "cosine", 50, 16, 1)
        >>> with TemporaryDirectory() as folder:
        ...     for place in (f"{part}/{name}" for part in ("train", "test") for name in "ab"):
        ...         Path(folder, "own", place).mkdir(parents=True)
        ...         _ = write_png(torch.zeros(3, 32, 32, dtype=torch.uint8), f"{folder}/own/{place}/0.png")
        ...     (images, labels), test = image_task(case, folder, torch.zeros(3), torch.ones(3))
        >>> images.shape, images.unique(), labels.tolist()
        (torch.Size([2, 3, 32, 32]), tensor([1.]), [0, 1])
    """
    folder = Path(root) / case.data
    count = OF_LONG if case.steps >= LONG else VALIDATION
    train = _part(case, folder, "train", mean, std, 0, case.images)
    test = _part(case, folder, "test", mean, std, 0, count)
    if missing := count - len(test[0]):
        spare = _part(case, folder, "train", mean, std, case.images, missing)
        test = torch.cat([test[0], spare[0]]), torch.cat([test[1], spare[1]])
    parts = [train, test]
    if size is not None:
        parts = [(v2.functional.resize(images, [size, size], antialias=True), labels) for images, labels in parts]
    return parts[0], parts[1]


def _part(case: Case, folder: Path, part: str, mean: Tensor, std: Tensor, skip: int, count: int) -> Images:
    """``count`` images of all classes together, behind the first ``skip``, as far as there are any."""
    if not (folder / part).is_dir():
        raise FileNotFoundError(f"root: no folder {part}/<class> in {str(folder)!r}, which case {case.name} needs")
    first, last = (-(-number // len(case.classes)) for number in (skip, skip + count))
    names = sorted(path.name for path in (folder / part).iterdir() if path.is_dir())
    images, labels = [], []
    for label, number in enumerate(case.classes):
        paths = sorted((folder / part / names[number]).iterdir())
        random.Random(f"{case.seed}/{number}").shuffle(paths)
        paths = paths[first:last]
        images += [v2.functional.pil_to_tensor(default_loader(str(path))) for path in paths]
        labels += [label] * len(paths)
    if not images:
        return torch.empty(0), torch.empty(0, dtype=torch.long)
    values = shifted(torch.stack(images).float() / 255, case.shift)
    return (values - mean.view(3, 1, 1)) / std.view(3, 1, 1), torch.tensor(labels)


def shifted(images: Tensor, shift: str) -> Tensor:
    """Change all images alike.

    Args:
        images: ``[n, 3, height, width]``, values from 0 to 1.
        shift: ``"none"``, ``"invert"`` (brightness), ``"permute"`` (channels), ``"dark"``, ``"grey"``, ``"rotate"``
            (upside down), ``"blur"`` or ``"edges"``.

    Example:
        >>> import torch
        >>> from research.outcomes.tasks import shifted
        >>> image = torch.tensor([[1.0, 0.0]]).expand(1, 3, 1, 2)
        >>> shifted(image, "invert")[0, 0], shifted(image, "rotate")[0, 0]
        (tensor([[0., 1.]]), tensor([[0., 1.]]))
    """
    if shift == "none":
        return images
    if shift == "invert":
        return 1 - images
    if shift == "permute":
        return images.roll(1, 1)
    if shift == "dark":
        return images * 0.3
    if shift == "grey":
        return v2.functional.rgb_to_grayscale(images, 3)
    if shift == "rotate":
        return images.flip((2, 3))
    if shift == "blur":
        return v2.functional.gaussian_blur(images, [7, 7], [2.0, 2.0])
    if shift == "edges":
        across = images[..., 1:] - images[..., :-1]
        down = images[..., 1:, :] - images[..., :-1, :]
        pad = torch.nn.functional.pad
        return (pad(across, (0, 1)).abs() + pad(down, (0, 0, 0, 1)).abs()).clamp(0, 1)
    raise ValueError(f"shift={shift!r}: one of none, invert, permute, dark, grey, rotate, blur, edges")
