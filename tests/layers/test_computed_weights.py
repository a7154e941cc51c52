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
        x = torch.rand(size, 4, 8)
        for net in (Positions(), lossy(Positions(), torch.rand(size, 4, 2))):
            layers = find_layers(net, x)
            assert [layer.parameters[0][-11:] for layer in layers if layer.always_trains] == ["head.weight"]


def test_what_follows_a_scale_that_a_function_of_the_users_applies_has_the_layer_before_it():
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale):
            ctx.save_for_backward(x, scale)
            return x * scale

        @staticmethod
        def backward(ctx, gradient):
            x, scale = ctx.saved_tensors
            return gradient * scale, (gradient * x).sum((0, 2, 3), keepdim=True)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
            self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)

        def forward(self, x):
            return self.conv(self.norm(Scaled.apply(x, self.scale)))

    layers = find_layers(nn.Sequential(nn.Conv2d(3, 8, 3), Block()), torch.rand(2, 3, 8, 8))
    assert [layer.stateful for layer in layers] == [("1.norm",), ()] and "1.scale" in layers[0].parameters


def lossy(net, target):
    """The network with a loss that compares it with data."""

    class Lossy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return F.mse_loss(self.net(x), target)

    return Lossy()


@pytest.mark.parametrize(
    "look_up",
    [
        lambda table, ids: F.embedding(ids, table),
        lambda table, ids: table[ids],
        lambda table, ids: table.index_select(0, ids),
        lambda table, ids: table.gather(0, ids[:, None].expand(-1, 8)),
        lambda table, ids: F.one_hot(ids, 10).float() @ table,
    ],
    ids=["embedding", "index", "index_select", "gather", "one_hot"],
)
def test_a_table_that_is_looked_up_is_a_layer_and_no_head(look_up):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.rand(10, 8))
            self.one, self.head = Masked(8, 8), nn.Linear(8, 2)

        def forward(self, ids):
            return self.head(self.one(look_up(self.table, ids)).relu())

    for net in (Table(), lossy(Table(), torch.rand(3, 2))):
        layers = find_layers(net, torch.tensor([1, 2, 3]))
        assert [layer.weights[0].removeprefix("net.") for layer in layers] == ["table", "one.weight", "head.weight"]
        assert [layer.always_trains for layer in layers] == ["", "", "output"]


@pytest.mark.parametrize("name", ["OwnLinear", "Fused", "Packed8"])
def test_a_function_of_the_users_makes_a_layer_whatever_its_name(name):
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x

    function = type(
        name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )

    class Own(nn.Linear):
        def forward(self, x):
            return function.apply(x, self.weight) + self.bias

    net = nn.Sequential(Own(8, 8), nn.LayerNorm(8), nn.ReLU(), Own(8, 8), nn.ReLU(), Own(8, 2))
    layers = find_layers(net, torch.rand(4, 8))
    assert [(layer.name, len(layer.parameters)) for layer in layers] == [("0", 4), ("3", 2), ("5", 2)]
    assert layers[-1].always_trains == "output"


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
