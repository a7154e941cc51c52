"""What the front cache keeps its hands off: chance, decisions, side effects, and parts that change."""

import copy
import random

import pytest
import torch
from test_front_cache import Tokens, images, tokens, train
from torch import nn

from smartfrz_lightning.freezing.front_cache import FrontCache


def test_a_front_that_draws_random_numbers_is_not_kept():
    torch.manual_seed(0)
    # Convolutions give an image the same whoever shares its batch, so that the random numbers alone could differ.
    front = [nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Conv2d(4, 4, 3)]
    net = nn.Sequential(*front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    other = copy.deepcopy(net)
    plain = train(net, images(12), 2)
    cache = FrontCache(other)
    cache.watch = lambda names: None  # dropout stays on
    cached = train(other, images(12), 2, cache)
    assert cached == plain
    cache.end_epoch()
    assert "2" in cache.refused and "random" in cache.refused["2"]


def test_dropout_of_the_front_is_off_while_it_is_kept_and_nowhere_else():
    torch.manual_seed(0)
    net = Tokens(dropout=0.3)
    cache = FrontCache(net)
    train(net, tokens(20), 5, cache)
    assert cache.use.hits > 0
    dropped = {name for name, module in net.named_modules() if isinstance(module, nn.Dropout) and module.training}
    inside = {name for name in dropped if name.startswith("layers.0")}
    assert len(dropped) == 6 and not inside, dropped
    cache.stop()
    assert all(module.training for module in net.modules() if isinstance(module, nn.Dropout))


class Chooses(nn.Module):
    """Takes another way for some samples, draws with Python's generator, counts, or normalises over the batch."""

    def __init__(self, how):
        super().__init__()
        self.how, self.front, self.head = how, nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.norm.requires_grad_(False)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        h = self.front(x)
        if self.how == "item" and h.sum().item() > 0:
            h = h * 2
        if self.how == "python":
            h = h * (1 + random.random())
        if self.how == "batchnorm":
            h = self.norm(h)
        if self.how == "count":
            self.count += 1
            h = h * self.count
        if self.how == "softmax":
            h = h.softmax(0)
        if self.how == "shape":
            h = h.reshape(-1, 2).sum(1).reshape(len(x), 3).repeat(1, 2)
        return self.head(h.clone())


@pytest.mark.parametrize("how", ["item", "python", "batchnorm", "count", "softmax", "shape"])
def test_what_is_no_function_of_the_sample_is_computed(how):
    torch.manual_seed(0)
    net, x = Chooses(how), torch.randn(21, 6, generator=torch.Generator().manual_seed(0))
    net.front.requires_grad_(False)
    other = copy.deepcopy(net)
    cache = FrontCache(other)
    for seed in range(12):
        index = torch.randperm(21, generator=torch.Generator().manual_seed(seed))[:9]
        random.seed(seed)
        plain = net.train()(x[index])
        random.seed(seed)
        cache.open()
        out = other.train()(x[index])
        cache.close()
        assert torch.allclose(out, plain, atol=1e-5), seed


@pytest.mark.parametrize("change", ["no_grad", "data", "new data", "load", "buffer", "mode", "swap and back"])
def test_a_front_that_changes_is_another_front(change):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)), torch.rand(8, 6)
    net[:2].requires_grad_(False)
    net.eval()
    cache = FrontCache(net)
    state = copy.deepcopy(net.state_dict())
    for step in range(12):
        if step == 6:
            with torch.no_grad():
                if change == "no_grad":
                    net[0].weight.add_(1)
                elif change == "data":
                    net[0].weight.data.mul_(2)
                elif change == "new data":
                    net[0].weight.data = torch.rand(6, 6)
                elif change == "load":
                    net[0].load_state_dict({name: tensor + 1 for name, tensor in net[0].state_dict().items()})
                elif change == "buffer":
                    net[1].running_mean += 1
                elif change == "mode":
                    net[1].train()
                else:
                    net[0].weight.add_(1)
                    net.load_state_dict(state)
        cache.open()
        out = net(x)
        cache.close()
        mean = net[1].running_mean.clone()
        assert torch.allclose(out, net(x), atol=1e-6), step
        net[1].running_mean.copy_(mean)
    assert cache.use.hits >= (8 if change == "mode" else 16)


def test_parts_that_change_all_the_time_are_left_alone():
    net, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)), torch.rand(8, 6)
    net[:2].requires_grad_(False)
    cache = FrontCache(net)
    for _ in range(8):
        with torch.no_grad():
            net[1].weight.mul_(0.9)
        cache.open()
        out = net(x)
        cache.close()
        assert torch.equal(out, net(x))
    assert cache.refused == {"1": "something changes it"} and cache.units == ["0"]


def test_an_input_that_is_changed_in_place_after_the_call_is_what_it_was():
    class Reuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.front, self.head = nn.Linear(6, 6), nn.Linear(12, 3)

        def forward(self, x):
            h = self.front(x)
            x.zero_()
            return self.head(torch.cat([h, x], 1))

    net, x = Reuses(), torch.rand(8, 6)
    net.front.requires_grad_(False)
    cache = FrontCache(net)
    for step in range(12):
        inputs = x[torch.randperm(8, generator=torch.Generator().manual_seed(step))[:6]]
        cache.open()
        out = net(inputs.clone())
        cache.close()
        assert torch.allclose(out, net(inputs.clone()), atol=1e-6)
    assert cache.use.hits > 0


def test_functional_calls_with_other_weights_are_carried_out():
    net, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), torch.rand(8, 6)
    net[0].requires_grad_(False)
    cache = FrontCache(net)
    for step in range(4):
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
    cache = FrontCache(net)
    first, rest = torch.rand(2, 8, 6)
    for step, x in enumerate([first, *[rest] * 5]):
        cache.open()
        net(x)
        cache.close()
        expected = net[0][0].layer(x)
        assert how != "tensor" or torch.equal(net[0][0].last, expected)
        assert how != "list" or torch.equal(net[0][0].seen[-1], expected)
        assert how != "count" or net[0][0].calls == step + 1
    assert cache.use.hits > 0 and cache.units == ["0.0.layer"]


def test_a_module_that_hands_out_more_than_tensors_is_not_kept_but_its_parts_are():
    class Output:
        def __init__(self, hidden):
            self.hidden = hidden

    class Front(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return Output(self.inner(x))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.front, self.head = Front(), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.front(x).hidden)

    net, x = Net(), torch.rand(8, 6)
    net.front.requires_grad_(False)
    cache = FrontCache(net)
    for _ in range(8):
        cache.open()
        net(x)
        cache.close()
    assert cache.units == ["front.inner"] and cache.use.hits > 0
