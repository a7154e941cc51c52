"""Which layers still have the weights that they were made with."""

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
    layers = [layer for layer in find_layers(net, torch.rand(2, 3, 32, 32)) if not layer.always_trains]
    assert layers and untrained_end(net, layers, [False] * len(layers)) == len(layers)


TORCHVISION = ["vgg11", "densenet121", "shufflenet_v2_x0_5", "vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0"]
TIMM = [
    "deit_tiny_patch16_224",
    "mixer_s32_224",
    "poolformer_s12",
    "xcit_nano_12_p16_224",
    "cait_xxs24_224",
    "resnetv2_50",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION + TIMM)
def test_more_networks_from_scratch(name):
    timm = pytest.importorskip("timm")
    net = getattr(torchvision.models, name)() if name in TORCHVISION else timm.create_model(name)
    layers = [layer for layer in find_layers(net, torch.rand(2, 3, 224, 224)) if not layer.always_trains]
    assert untrained_end(net, layers, [False] * len(layers)) == len(layers)


class Gated(nn.Module):
    """Layers of a kind that has no structure to look for: one output, a table with an empty row, a recurrent one."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(30, 16, padding_idx=0)
        self.over_time = nn.LSTM(16, 16, batch_first=True)
        self.gate, self.head = nn.Linear(16, 1), nn.Linear(16, 2)

    def forward(self, x):
        x = self.over_time(self.words(x))[0]
        return self.head((self.gate(x).softmax(1) * x).sum(1))


def test_layers_of_other_kinds():
    torch.manual_seed(0)
    net = Gated()
    layers = [layer for layer in find_layers(net, torch.randint(30, (4, 7))) if not layer.always_trains]
    assert len(layers) > 2 and untrained_end(net, layers, [False] * len(layers)) == len(layers)
    parametrized = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 2))
    assert untrained_end(parametrized, find_layers(parametrized, torch.rand(2, 8)), [False] * 2) == 2
    assert not looks_untrained(torch.full((4, 4), torch.nan)) and not looks_untrained(torch.empty(0, 4))
    assert looks_untrained(torch.randn(8, 8, dtype=torch.complex64))


def test_statistics_that_moved():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    layers = find_layers(net, torch.rand(4, 8))
    assert untrained_end(net, layers, [False] * 3) == 3
    net[1].train()(torch.randn(4, 8))  # somebody measured a shape
    assert untrained_end(net, layers, [False] * 3) == 3
    for _ in range(10):
        net[1](torch.randn(4, 8))
    assert untrained_end(net, layers, [False] * 3) == 2
    net[3].running_mean += 0.1  # from a file without the number of batches
    assert untrained_end(net, layers, [False] * 3) == 1


def test_silence_counts_beside_frozen_weights_alone():
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    layers = find_layers(plain, torch.rand(4, 8))
    assert untrained_end(plain, layers, [True, True, False]) == 3  # a part that nobody uses yet
    plain.beside = nn.Linear(8, 8).requires_grad_(False)
    assert untrained_end(plain, layers, [True, True, False]) == 1


def test_real_weights():
    from smartfrz_lightning.experiments.efficientnet_lite0 import efficientnet_lite0

    net = efficientnet_lite0(num_classes=10)
    layers = [layer for layer in find_layers(net, torch.rand(2, 3, 32, 32)) if not layer.always_trains]
    assert untrained_end(net, layers, [False] * len(layers)) == 0
