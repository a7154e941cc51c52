"""Which layers still have the weights that they were made with."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from smartfrz_lightning.layers import find_layers
from smartfrz_lightning.layers.untrained import looks_untrained, untrained_end

RANDOM = {
    "uniform": nn.init.kaiming_uniform_,
    "normal": nn.init.kaiming_normal_,
    "xavier": nn.init.xavier_uniform_,
    "cut off": lambda w: nn.init.trunc_normal_(w, std=0.02),
    "orthogonal": nn.init.orthogonal_,
    "zero": nn.init.zeros_,
}
SHAPES = [(16, 3, 3, 3), (64, 64, 3, 3), (32, 1, 5, 5), (8, 4), (1000, 384), (1, 50, 96), (3, 3)]
MADE = [(*shape, init) for shape in SHAPES for init in RANDOM] + [(512, "one"), (512, "zero"), (1, "one")]
SHARED = Path(__file__).parents[3] / "shared/data/weights"


@pytest.mark.parametrize("made", MADE, ids=str)
def test_as_it_was_made(made):
    *shape, init = made
    for seed in range(20):
        torch.manual_seed(seed)
        weight = {**RANDOM, "one": nn.init.ones_}[init](torch.empty(shape))
        assert looks_untrained(weight) and looks_untrained(weight.bfloat16()) and looks_untrained(-3e-4 * weight)


def test_every_way_of_writing_it_down_says_the_same():
    torch.manual_seed(0)
    made = torch.randn(40, 30)
    trained = made + 2 * torch.randn(40, 1) @ torch.randn(1, 30) / 3
    for weight, new in ((made, True), (trained, False)):
        rows, columns = torch.randperm(40), torch.randperm(30)
        same = (weight.T, weight[rows][:, columns], 1e6 * weight, weight.half(), weight.double(), weight[None])
        assert all(looks_untrained(one) is new for one in same)
    vector = torch.ones(30)
    assert looks_untrained(vector) and not looks_untrained(vector + 0.01 * torch.randn(30))


def train(net, x, y, steps, rate):
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def test_what_has_learned_something():
    torch.manual_seed(0)
    x = torch.randn(256, 20)
    y = (x @ torch.randn(20, 5)).argmax(1)
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    layers = find_layers(net, x)[:2]
    assert untrained_end(net, layers, [False] * 2) == 2
    train(net, x, y, 300, 0.1)
    assert untrained_end(net, layers, [False] * 2) == 0
    net[2] = nn.Linear(64, 64)  # a new layer behind a pretrained one
    assert untrained_end(net, layers, [False] * 2) == 1


@pytest.mark.parametrize(
    "make",
    [
        torchvision.models.resnet18,
        lambda: torchvision.models.resnet18(zero_init_residual=True),
        lambda: torchvision.models.mobilenet_v3_small(),
        lambda: torchvision.models.VisionTransformer(32, 8, 3, 4, 96, 192),
        lambda: torchvision.models.squeezenet1_1(),
    ],
)
def test_networks_from_scratch(make):
    torch.manual_seed(0)
    net = make()
    layers = [layer for layer in find_layers(net, torch.rand(2, 3, 32, 32)) if not layer.pinned]
    assert layers and untrained_end(net, layers, [False] * len(layers)) == len(layers)


def test_statistics_that_moved_and_silence_count_as_training():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    layers = find_layers(net, torch.rand(4, 8))
    assert untrained_end(net, layers, [False] * 3) == 3
    # Gradients behind a BatchNorm that begins at zero are zero, which says nothing while its statistics are new.
    assert untrained_end(net, layers, [False, True, False]) == 3
    net[1].train()(torch.randn(4, 8))
    assert untrained_end(net, layers, [False] * 3) == 2
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    layers = find_layers(plain, torch.rand(4, 8))
    assert untrained_end(plain, layers, [True, True, False]) == 1


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet32_cifar10", "tf_efficientnet_lite0"])
def test_real_weights(name):
    file = SHARED / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"needs {name}.safetensors, which is not part of the repository")
    pytest.importorskip("timm")
    from smartfrz_lightning.outcomes.networks import build

    net = build("efficientnet_lite0" if "lite0" in name else name.partition("_")[0], 10, file)
    layers = [layer for layer in find_layers(net, torch.rand(2, 3, 32, 32)) if not layer.pinned]
    assert untrained_end(net, layers, [False] * len(layers)) == 0
