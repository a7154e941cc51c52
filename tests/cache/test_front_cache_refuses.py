"""What the front cache keeps its hands off: chance, decisions, side effects."""

import copy
import random
import weakref

import pytest
import torch
from cached import Tokens, cache_of, images, same, steps, tokens, train, vectors
from torch import nn


class Noise(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * torch.rand(())


def test_a_front_that_draws_random_numbers_is_not_kept():
    torch.manual_seed(0)
    # Convolutions give an image the same whoever shares its batch, so that the random numbers alone could differ.
    net = nn.Sequential(Noise(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    other = copy.deepcopy(net)
    plain = train(net, images(12), 2)
    cache = cache_of(other)
    assert train(other, images(12), 2, cache) == plain
    assert cache.refused["0"] == "it draws random numbers"


DROPPED = []


class TellingDropout(nn.Dropout):
    def forward(self, x):
        DROPPED.append(self.training)
        return super().forward(x)


def test_dropout_of_the_front_is_off_while_it_is_kept_and_as_the_user_set_it_otherwise():
    torch.manual_seed(0)
    net = Tokens(dropout=0.3)
    net.layers[0].dropout = TellingDropout(0.3)
    keep, train_mode = net.layers[0].dropout1.eval(), net.train
    net.train = lambda mode=True: (train_mode(mode), keep.eval())[0]
    cache = cache_of(net)
    DROPPED.clear()
    train(net, tokens(20), 5, cache, epochs=6, batch=5)
    assert cache.use.hits > 0 and DROPPED and not any(DROPPED[1:])  # the first call looks for the layers
    dropouts = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    assert all(module.training != (module is keep) for module in dropouts)


def test_dropout_behind_what_trains_stays_on():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), TellingDropout(0.5)), nn.Linear(6, 3))
    net[1].requires_grad_(False)
    DROPPED.clear()
    same(net, vectors(), lambda net, x, number: net(x))
    assert DROPPED and all(DROPPED)


class Chooses(nn.Module):
    """A frozen module that does more than map samples."""

    def __init__(self, how):
        super().__init__()
        self.how, self.layer, self.norm = how, nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        h = self.layer(x)
        if self.how == "decides by values":
            return h * 2 if h.sum().item() > 0 else h
        if self.how == "draws with Python":
            return h * (1 + random.random())
        if self.how == "normalises the batch":
            return self.norm(h)
        if self.how == "counts":
            self.count += 1
            return h * self.count
        if self.how == "mixes samples":
            return h.softmax(0)
        if self.how == "writes to its input":
            x.mul_(0.5)
        if self.how == "gives a size":
            return h, len(h)
        if self.how == "gives other rows":
            return h.repeat(2, 1)
        return h


HOWS = ["decides by values", "draws with Python", "normalises the batch", "counts", "mixes samples"]


HOWS += ["writes to its input", "gives a size", "gives other rows"]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("how", HOWS)
def test_what_is_no_function_of_the_sample_is_computed(how, autocast):
    torch.manual_seed(0)
    net = nn.Sequential(Chooses(how), nn.Linear(6, 3))
    net[0].requires_grad_(False)

    def step(net, x, number):
        random.seed(number)
        with torch.autocast("cpu", torch.bfloat16, autocast):
            h = net[0](x)
            size = 1.0
            if how == "gives a size":
                h, size = h
            return net[1](h).float() * size

    plain, kept, _, _, cache = steps(net, vectors(11), step, epochs=6, batch=4)  # a smaller last batch
    assert kept == pytest.approx(plain, rel=2e-2 if autocast else 1e-5)
    assert "0" in cache.refused, cache.refused


def test_what_gives_a_tuple_with_none_and_other_types_is_kept():
    class Gives(nn.Linear):
        def forward(self, x):
            h = super().forward(x)
            return h, None, {"mask": h > 0, "count": (h > 0).sum(1)}

    net = nn.Sequential(Gives(6, 6), nn.Linear(6, 3))
    net[0].requires_grad_(False)

    def step(net, x, number):
        h, none, more = net[0](x)
        assert none is None
        return net[1](h * more["mask"]) * more["count"][:, None]

    same(net, vectors(), step, hits=True)


def test_functional_calls_with_other_weights_are_carried_out():
    net, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), torch.rand(8, 6)
    net[0].requires_grad_(False)
    cache = cache_of(net)
    for step in range(6):
        others = {name: tensor + step for name, tensor in net.named_parameters()}
        cache.open()
        net(x).sum().backward()
        out = torch.func.functional_call(net, others, (x,))
        cache.close()
        assert torch.equal(out, torch.func.functional_call(net, others, (x,)))


class Keeps(nn.Module):
    """Leaves something on itself in every call, for others to use."""

    def __init__(self, how):
        super().__init__()
        self.how, self.layer, self.calls, self.seen = how, nn.Linear(6, 6), 0, []

    def forward(self, x):
        out = self.layer(x)
        if self.how == "tensor":
            self.last = out.detach()
        elif self.how == "count":
            self.calls += 1
        else:
            self.seen.append(out.detach())
        return out


@pytest.mark.parametrize("how", ["tensor", "count", "list"])
def test_what_a_module_leaves_on_itself_is_as_fresh_as_ever(how):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(Keeps(how), nn.ReLU()), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    cache = cache_of(net)
    first, rest = torch.rand(2, 8, 6)
    for step, x in enumerate([first, *[rest] * 7]):
        cache.open()
        net(x)
        cache.close()
        expected = net[0][0].layer(x)
        assert how != "tensor" or torch.allclose(net[0][0].last, expected)
        assert how != "list" or torch.allclose(net[0][0].seen[-1], expected)
        assert how != "count" or net[0][0].calls == step + 1
    assert cache.use.hits > 0 and "0.0" in cache.refused


def test_a_smaller_type_is_for_floating_point_values_alone():
    class Positive(nn.Linear):
        def forward(self, x):
            return super().forward(x) > 0

    net, x = nn.Sequential(Positive(6, 6), nn.Linear(6, 3)), vectors()
    net[0].requires_grad_(False)
    cache = cache_of(net, dtype=torch.float16)
    for _ in range(6):
        cache.open()
        signs = net[0](x)
        assert signs.dtype == torch.bool and torch.equal(signs | signs, net[0](x) | signs)
        cache.close()
    assert cache.use.hits > 0


def test_values_beyond_the_smaller_type_are_not_kept():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    with torch.no_grad():
        net[0].weight.mul_(1e6)
    net[0].requires_grad_(False)
    cache, x = cache_of(net, dtype=torch.float16), vectors()
    for _ in range(6):
        cache.open()
        out = net(x)
        cache.close()
        assert torch.allclose(out, net(x), rtol=1e-4)
    assert cache.use.hits == 0


def test_nothing_holds_a_model_when_training_has_ended():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    cache = cache_of(net)
    for _ in range(4):
        cache.open()
        net(vectors())
        cache.close()
    gone = weakref.ref(net[0])
    cache.stop()
    del net, cache
    import gc

    gc.collect()
    assert gone() is None


def test_compiled_models_are_left_alone():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    net[1].compile(backend="eager")
    cache = cache_of(net)
    cache.open()
    assert "forward" not in vars(net[0]) and cache.use.stopped == "the model is compiled"


def test_hooks_inside_of_the_front_go_on_being_called():
    net, x, seen = nn.Sequential(nn.Sequential(nn.Linear(6, 6)), nn.Linear(6, 3)), torch.rand(8, 6), []
    net[0].requires_grad_(False)
    net[0][0].register_forward_hook(lambda module, inputs, out: seen.append(out.sum().item()))
    cache = cache_of(net)
    for _ in range(4):
        cache.open()
        net(x)
        cache.close()
    assert len(seen) == 4 and len(set(seen)) == 1
