"""Calls that look alike and are not: the front cache tells them from each other, or keeps its hands off."""

import pytest
import torch
import torch.nn.functional as F
from cached import same, vectors
from torch import nn
from torch.func import functional_call, grad

from smartfrz_lightning.cache.fingerprint import Fingerprint


class Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def scale(factor):
    class Scale(nn.Module):
        def forward(self, x):
            return x * factor

    return Scale()


def repeated(times):
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(6) * 0.5)
        layer.bias.fill_(0.1)
    return nn.Sequential(*[layer] * times)


PAIRS = {
    "functions": lambda: (Applies(lambda x: F.relu(x)), Applies(lambda x: F.gelu(x))),
    "constants": lambda: (Applies(lambda x: x * 0.5), Applies(lambda x: x * 0.1)),
    "closures of classes": lambda: (scale(0.5), scale(0.1)),
    "one part once and twice": lambda: (repeated(1), repeated(2)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_modules_that_differ_in_what_they_do(pair):
    torch.manual_seed(0)
    one, other = PAIRS[pair]()
    net = nn.ModuleDict({"front": nn.Sequential(nn.Linear(6, 6), nn.Tanh()), "one": one, "other": other})
    net.requires_grad_(False)
    net["head"] = nn.Linear(6, 3)

    def step(net, x, number):
        h = net["front"](x)
        return net["head"](net["one"](h)) + net["head"](net["other"](h)).square()

    same(net, vectors(), step, hits=True)


def two_modules():
    torch.manual_seed(0)
    net = nn.ModuleDict({name: nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for name in ("first", "second")})
    net.requires_grad_(False)
    net["head"], net["other"] = nn.Linear(6, 3), nn.Linear(6, 3)
    return net


def written_to_later(net, x, number):
    p = net["first"](x)
    q = net["second"](p)
    y = net["head"](F.relu_(p))
    return y + net["other"](q) if number >= 100 else y  # asked for from the second epoch on


def differentiated_later(net, x, number):
    p = net["first"](x)
    q = net["second"](p)
    p.requires_grad_()
    y = net["head"](p) * 0.1
    return y + net["other"](q) * 0.1 if number >= 100 and number % 2 else y


def under_inference_mode(net, x, number):
    p = net["first"](x)
    with torch.inference_mode():
        mean = p.mean()
    return net["head"](p) + float(mean)


def in_a_transform(net, x, number):
    p, weights = net["first"](x), {name: w.detach() for name, w in net["head"].named_parameters()}
    inner = grad(lambda w: functional_call(net["head"], w, (p,)).square().mean())(weights)
    return net["head"](p) + inner["bias"]


def all_in_a_transform(net, x, number):
    weights = {name: w.detach() for name, w in net["head"].named_parameters()}
    inner = grad(lambda w: functional_call(net["head"], w, (net["first"](x),)).square().mean())(weights)
    return net["head"](net["first"](x)) + inner["bias"]


def with_an_attribute(net, x, number):
    h = net["first"](x)
    h.factor = 0.5
    return net["head"](h * h.factor)


def a_part_is_replaced(net, x, number):
    if number == 202:
        net["second"][1] = nn.ReLU()
    return net["head"](net["second"](net["first"](x)))


def a_part_gets_another_forward(net, x, number):
    if number == 202:
        net["second"][1].forward = lambda x: x * 0.5
    return net["head"](net["second"](net["first"](x)))


def not_called_at_first(net, x, number):
    return net["head"](net["second"](net["first"](x)) if number >= 100 else net["first"](x))


STEPS = [written_to_later, differentiated_later, under_inference_mode, in_a_transform, all_in_a_transform]
STEPS += [with_an_attribute, a_part_is_replaced, a_part_gets_another_forward, not_called_at_first]


@pytest.mark.parametrize("step", STEPS)
def test_steps_that_use_a_front_in_unusual_ways(step):
    same(two_modules(), vectors(), step, hits=True)


class Largest(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y / y.abs().max()


class Listed(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y * 0.1 if max(y.amax(1).tolist()) > 0.5 else y


class Asserts(nn.Linear):
    def forward(self, x):
        assert len(x) in (2, 6)
        return super().forward(x)


class Leaves(nn.Linear):
    last = None

    def forward(self, x):
        y = super().forward(x)
        self.last = y.detach().numpy()
        return y


@pytest.mark.parametrize("kind", [Largest, Listed, Asserts, Leaves])
def test_modules_that_go_by_the_batch_are_run(kind):
    torch.manual_seed(0)
    net = nn.ModuleDict({"clean": nn.Linear(6, 6), "kind": kind(6, 6)}).requires_grad_(False)
    net["head"], net["other"] = nn.Linear(6, 3), nn.Linear(6, 3)

    def step(net, x, number):
        return net["other"](net["clean"](x)) + net["head"](net["kind"](x))

    for batch in (2, 6):
        assert "kind" in same(net, vectors(), step, hits=True, batch=batch).refused


def test_a_tensor_that_takes_the_place_of_another_in_memory_is_another_one():
    module, digests = nn.Module(), set()
    module.register_buffer("values", torch.zeros(5000))
    module.numbers = [torch.zeros(100)]
    fingerprint = Fingerprint(module)
    for number in range(20):
        module.values = torch.full((5000,), float(number))
        digests.add(fingerprint())
        module.numbers[0] = torch.full((100,), float(number + 1))
        digests.add(fingerprint())
    assert len(digests) == 40
    weight = nn.Linear(50, 50).requires_grad_(False)
    fingerprint, digests = Fingerprint(weight), set()
    for number in range(20):
        weight.weight.data = torch.full((50, 50), float(number))
        digests.add(fingerprint())
    assert len(digests) == 20


def test_inputs_with_nan_are_kept():
    torch.manual_seed(0)
    net = nn.ModuleDict({"front": Applies(torch.nan_to_num), "layer": nn.Linear(6, 6), "head": nn.Linear(6, 3)})
    net["layer"].requires_grad_(False)
    data = vectors()
    data[::3, 0] = torch.nan
    same(net, data, lambda net, x, number: net["head"](net["layer"](x).nan_to_num()), hits=True)
