"""Layers whose weights are computed from their parameters in every forward pass, and blocks that are checkpointed."""

from functools import partial

import pytest
import torch
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from smartfrz_lightning.layers import find_layers


class Standardised(nn.Linear):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x):
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, weight / (weight.std(1, keepdim=True) + 1e-5), self.bias)


class Rounded(nn.Linear):
    """Quantised weights with a straight-through gradient."""

    def forward(self, x):
        rounded = (8 * self.weight).round() / 8
        return F.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


class Masked(nn.Linear):
    """Weights with a fixed pattern of zeros."""

    def forward(self, x):
        return F.linear(x, self.weight * torch.ones(self.weight.shape).tril(), self.bias)


class Adapted(nn.Linear):
    """A frozen weight with a low-rank one on top."""

    def __init__(self, *shape):
        super().__init__(*shape)
        self.weight.requires_grad_(False)
        self.up, self.down = nn.Parameter(torch.zeros(shape[1], 2)), nn.Parameter(torch.rand(2, shape[0]))

    def forward(self, x):
        return F.linear(x, self.weight + self.up @ self.down, self.bias)


@pytest.mark.parametrize("kind", [Standardised, Rounded, Masked, Adapted])
def test_each_module_is_a_layer(kind):
    net = nn.Sequential(kind(8, 8), nn.ReLU(), kind(8, 8), nn.ReLU(), nn.Linear(8, 2))
    layers = find_layers(net, torch.rand(8, 8))
    assert [(layer.name, layer.always_trains) for layer in layers] == [("0", ""), ("2", ""), ("4", "output")]


def test_what_is_added_to_a_batch_of_one_is_no_weight():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(torch.rand(1, 4, 8))
            self.one, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.one(x + self.positions).relu())

    for size in (1, 2):
        layers = find_layers(Positions(), torch.rand(size, 4, 8))
        assert [layer.parameters for layer in layers if layer.always_trains] == [("head.weight", "head.bias")]


@pytest.mark.parametrize("kind", [StdConv2d, ScaledStdConv2d, ScaledStdConv2dSame])
def test_standardised_convolutions_of_timm(kind):
    convolution = partial(kind, kernel_size=3, padding=1)
    net = nn.Sequential(convolution(3, 8), nn.ReLU(), convolution(8, 8), nn.Flatten(), nn.Linear(512, 2))
    layers = find_layers(net, torch.rand(2, 3, 8, 8))
    assert [(layer.name, layer.always_trains) for layer in layers] == [("0", ""), ("2", ""), ("4", "output")]


def test_checkpoints_whose_blocks_would_get_no_gradients_are_refused():
    class Blocks(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.reentrant = reentrant

        def forward(self, x):
            return self.head(checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant))

    assert [layer.name for layer in find_layers(Blocks(False), torch.rand(4, 8))] == ["stem", "block", "head"]
    with pytest.raises(ValueError, match="use_reentrant=False"):
        find_layers(Blocks(True), torch.rand(4, 8))
