"""FLOPs go to the layer whose weight is multiplied, however the model reaches it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from smartfrz_lightning.cost.forward import ForwardFlops
from smartfrz_lightning.cost.step_cost import step_cost
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.layers import find_layers


class Bare(nn.Module):
    """Weights of its own, without modules."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.rand(8, 16)), nn.Parameter(torch.rand(16, 32))
        self.three = nn.Parameter(torch.rand(32, 2))

    def forward(self, x):
        return ((x @ self.one).relu() @ self.two).relu() @ self.three


class Listed(nn.Module):
    """Weights in a list, used by their parent."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.rand(16, 8), torch.rand(32, 16), torch.rand(2, 32)])

    def forward(self, x):
        for weight in self.weights:
            x = F.linear(x, weight).relu()
        return x


class Uncalled(nn.Module):
    """Modules that hold weights, but are not called."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, x):
        x = F.linear(x, self.one.weight, self.one.bias).relu()
        return self.head(F.linear(x, self.two.weight, self.two.bias).relu())


class Tied(nn.Module):
    """A table that is looked up first and multiplied last."""

    def __init__(self):
        super().__init__()
        self.table, self.one, self.two = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = self.table((x * 20).long()).mean(1)
        return self.two(self.one(x).relu()) @ self.table.weight.T


class TiedModules(Tied):
    """The same, by two modules that share a parameter."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x):
        x = self.table((x * 20).long()).mean(1)
        return self.out(self.two(self.one(x).relu()))


def normed(norm):
    return nn.Sequential(norm(nn.Linear(8, 16)), nn.ReLU(), norm(nn.Linear(16, 32)), nn.ReLU(), nn.Linear(32, 2))


MODELS = {
    "bare": Bare,
    "listed": Listed,
    "uncalled": Uncalled,
    "tied": Tied,
    "tied modules": TiedModules,
    "weight norm": lambda: normed(parametrizations.weight_norm),
    "spectral norm": lambda: normed(parametrizations.spectral_norm),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_costs_what_pytorch_counts_in_it(kind, autocast):
    model, x = MODELS[kind](), torch.rand(4, 8)
    layers = find_layers(model, x)
    assert len(layers) == 3
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        counter = ForwardFlops(model)
        counter.start()
        model(x)
        counter.stop()
    cost = step_cost(layers, counter.products)
    for front in (0, 1, 2):
        frozen = [layer for layer in layers if not layer.always_trains][:front]
        freeze(model, frozen)
        with FlopCounterMode(display=False) as whole, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(x).float().sum().backward()
        assert cost.when_frozen({layer.name for layer in frozen}).total == whole.get_total_flops()
