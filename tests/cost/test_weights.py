"""A step costs what PyTorch counts in its forward and backward pass, whatever the model does with its weights."""

import pytest
import torch
import torchvision
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


class Shared(nn.Module):
    """Two layers that take turns."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = x + self.two(self.one(x).relu())
        return self.head(x)


class Siamese(nn.Module):
    """Two inputs through the same layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(64, 2)

    def forward(self, x):
        return self.head(torch.cat([self.two(self.one(y).relu()) for y in (x, x.flip(0))], 1))


class Normed(nn.Module):
    """Norms stand in front of layers, and attention has no weights."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.qkv = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 48)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.head(x + self.out((q @ k.T).softmax(-1) @ v))


class WithInputs(nn.Sequential):
    """Its inputs need gradients, as in adversarial training."""

    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x):
        return super().forward(x.clone().requires_grad_())


class Detached(nn.Module):
    """Targets by the same weights, and a head on what is detached."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, x):
        with torch.no_grad():
            target = self.head(self.two(self.one(x).relu()))
        x = self.two(self.one(x).relu())
        return self.head(x) - target + self.head(x.detach())


class OwnLinear(torch.autograd.Function):
    """A product with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return grad @ weight.T if needs[0] else None, x.T @ grad if needs[1] else None


class OwnFunctions(Bare):
    """Its products have backward passes of their own."""

    def forward(self, x):
        x = OwnLinear.apply(x, self.one).relu()
        return OwnLinear.apply(OwnLinear.apply(x, self.two).relu(), self.three)


class Mined(Bare):
    """Activations with gradients are used without them, too."""

    def forward(self, x):
        x = (x @ self.one).relu()
        with torch.no_grad():
            chosen = (x @ self.two).relu().sum(1).argsort()
        return (x[chosen] @ self.two).relu() @ self.three


class Written(nn.Module):
    """A token is repeated, and data is written into some of the copies."""

    def __init__(self):
        super().__init__()
        self.token, self.stem = nn.Embedding(1, 16), nn.Linear(8, 16)
        self.one, self.head = nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, x):
        tokens = self.token.weight.repeat(len(x) + 1, 1)
        tokens[:-1] = self.stem(x)
        return self.head(self.one(tokens).relu())


class SecondInput(nn.Module):
    """A second input needs gradients."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.one(x).relu() + self.two(x.flip(0).requires_grad_()).relu())


class Images(nn.Module):
    """A residual network, of which some layers lie beside others."""

    def __init__(self):
        super().__init__()
        self.net = torchvision.models.resnet18(num_classes=2)

    def forward(self, x):
        return self.net(x.repeat(1, 3 * 4 * 32).view(-1, 3, 32, 32))


def normed(norm):
    return nn.Sequential(norm(nn.Linear(8, 16)), nn.ReLU(), norm(nn.Linear(16, 32)), nn.ReLU(), nn.Linear(32, 2))


MODELS = {
    "bare": Bare,
    "listed": Listed,
    "uncalled": Uncalled,
    "tied": Tied,
    "tied modules": TiedModules,
    "shared": Shared,
    "siamese": Siamese,
    "norms in front": Normed,
    "inputs that need gradients": WithInputs,
    "detached": Detached,
    "residual": Images,
    "own functions": OwnFunctions,
    "mined": Mined,
    "written": Written,
    "a second input": SecondInput,
    "weight norm": lambda: normed(parametrizations.weight_norm),
    "spectral norm": lambda: normed(parametrizations.spectral_norm),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_costs_what_pytorch_counts_in_it(kind, autocast):
    model, x = MODELS[kind](), torch.rand(4, 8)
    layers = find_layers(model, x)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        counter = ForwardFlops(model)
        counter.start()
        model(x)
        counter.stop()
    cost = step_cost(layers, counter.parameters, counter.products)
    able = [layer for layer in layers if not layer.always_trains]
    assert len(able) > 1
    for frozen in (able[:0], able[:1], able[: len(able) // 2], able):
        freeze(model, frozen)
        with FlopCounterMode(display=False) as whole, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(x).float().sum().backward()
        assert cost.when_frozen({layer.name for layer in frozen}).total == whole.get_total_flops()


def test_recurrent_weights_that_were_copied_count():
    """As under CUDA's autocast."""
    net, x = nn.LSTM(8, 16), torch.rand(5, 4, 8)
    counter = ForwardFlops(net)
    counter.start()
    parts = [torch.empty(parameter.shape).copy_(parameter) for parameter in net.parameters()]
    states = torch.zeros(1, 4, 16)
    torch._VF.lstm(x, (states, states), parts, True, 1, 0.0, True, False, False)
    counter.stop()
    assert sum(flops for flops, _ in counter.products) == 2 * 5 * 4 * 4 * 16 * (8 + 16)
