"""Data and weights that the configs use."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.io import write_png

from smartfrz_lightning.experiments.classifier import ImageClassifier
from smartfrz_lightning.experiments.images import ImageFolderDataModule, crop_and_flip
from smartfrz_lightning.experiments.weights import load_weights


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 5), ("test", 3)):
        for shade, name in ((10, "dark"), (240, "light")):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                path = tmp_path / part / name / f"{number}.png"
                write_png(torch.full((3, 32, 32), shade + number, dtype=torch.uint8), str(path))
    return tmp_path


def test_image_folder(folder):
    settings = {"mean": (0, 0, 0), "std": (1, 1, 1), "batch_size": 4}
    data = ImageFolderDataModule(str(folder), train_per_class=3, test_per_class=2, **settings)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(labels) for _, labels in batches] == [4]  # 6 images, the incomplete batch is dropped
    images, labels = next(iter(data.val_dataloader()))
    assert labels.tolist() == [0, 0, 1, 1]
    assert torch.allclose(images[:, 0, 0, 0], torch.tensor([10, 11, 240, 241]) / 255)
    other = ImageFolderDataModule(str(folder), classes=["light"], shift="invert", **settings)
    other.setup("fit")
    images, labels = next(iter(other.val_dataloader()))
    assert labels.tolist() == [0, 0, 0] and torch.allclose(images[:, 0, 0, 0], torch.tensor([15, 14, 13]) / 255)


def test_image_folder_bad_input(folder):
    with pytest.raises(FileNotFoundError, match="has no folder 'train'"):
        ImageFolderDataModule(str(folder / "nowhere"))
    with pytest.raises(ValueError, match="no folder .'red'."):
        ImageFolderDataModule(str(folder), classes=["red"]).setup("fit")


def test_each_image_is_cropped_and_flipped_for_itself():
    torch.manual_seed(0)
    images = torch.arange(1, 65.0).reshape(1, 1, 8, 8).repeat(400, 3, 1, 1)
    out = crop_and_flip(images)
    assert out.shape == images.shape and torch.equal(out[:, 0], out[:, 2])
    padded = nn.functional.pad(images[:1], (1, 1, 1, 1))[0, 0]
    crops = [padded[row : row + 8, column : column + 8] for row in range(3) for column in range(3)]
    possible = {tuple(crop.flatten().tolist()) for one in crops for crop in (one, one.flip(-1))}
    assert {tuple(image.flatten().tolist()) for image in out[:, 0]} == possible


def test_weights_with_a_new_head(tmp_path):
    def net():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    one, other = net(), net()
    head = other[2].weight.clone()
    state = {name: tensor for name, tensor in one.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "weights.safetensors")
    ImageClassifier(other, weights=str(tmp_path / "weights.safetensors"), fresh=["2.*"])
    assert torch.equal(one[0].weight, other[0].weight) and torch.equal(head, other[2].weight)
    torch.save({"state_dict": {f"network.{name}": tensor for name, tensor in state.items()}}, tmp_path / "run.ckpt")
    load_weights(other, str(tmp_path / "run.ckpt"))
    assert torch.equal(one[2].weight, other[2].weight)


def test_weights_that_do_not_fit(tmp_path):
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "weights.safetensors")
    path = str(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_weights(nn.Linear(3, 2), "nowhere.ckpt")
    with pytest.raises(ValueError, match="1 entries are missing or of another shape, .'bias'."):
        load_weights(nn.Linear(3, 2), path)
    with pytest.raises(ValueError, match="fresh='head.*' matches nothing"):
        load_weights(nn.Linear(3, 2), path, fresh=["head.*"])
