"""A front that changes is another front."""

import copy
from dataclasses import dataclass

import pytest
import torch
from cached import cache_of, same, vectors
from torch import nn


@dataclass
class Options:
    scale: float = 1.0


class Reads(nn.Linear):
    """Scales by what stands somewhere on it."""

    def __init__(self, where):
        super().__init__(6, 6)
        self.where, self.number, self.tensor = where, 1.0, torch.ones(())
        self.table, self.row, self.options = {"scale": 1.0}, [1.0], Options()

    def set(self, value):
        if self.where == "a number":
            self.number = value
        elif self.where == "a dict":
            self.table["scale"] = value
        elif self.where == "a list":
            self.row[0] = value
        elif self.where == "a dataclass":
            self.options.scale = value
        elif self.where == "a tensor":
            self.tensor = torch.tensor(value, dtype=torch.double)

    def forward(self, x):
        scale = self.number * self.table["scale"] * self.row[0] * self.options.scale * self.tensor
        return super().forward(x) * scale


@pytest.mark.parametrize("where", ["a number", "a dict", "a list", "a dataclass", "a tensor"])
def test_an_attribute_that_changes_makes_another_front(where):
    torch.manual_seed(0)
    net = nn.Sequential(Reads(where), nn.Linear(6, 3))
    net[0].requires_grad_(False)

    def step(net, x, number):
        total = 0
        for value in (1.0, 2.0 + number // 300):  # set twice in a step, and to something new in later epochs
            net[0].set(value)
            total = total + net[1](net[0](x))
        return total

    same(net, vectors(), step, hits=True)


def test_what_holds_something_that_cannot_be_compared_is_not_kept_and_its_parts_are():
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3))
    net[0].source = (number for number in range(3))
    net[0].requires_grad_(False)
    cache = cache_of(net)
    for _ in range(6):
        cache.open()
        net(vectors())
        cache.close()
    why = "it holds something that cannot be compared: cannot pickle 'generator' object"
    assert cache.refused == {"0": why} and cache.use.hits > 0


class Holds(nn.Linear):
    """Holds a tensor, or something else, that cannot be compared."""

    def __init__(self, what):
        super().__init__(6, 6)
        with torch.inference_mode(what == "made in inference mode"):
            made = torch.arange(6.0)
        if what == "sparse":
            made = made.to_sparse()
        elif what == "on no device":
            made = made.to("meta")
        elif what == "an odd object":
            made = Odd()
        self.made = made


class Odd:
    def __reduce_ex__(self, protocol):
        raise KeyError("no")


@pytest.mark.parametrize("what", ["made in inference mode", "sparse", "on no device", "an odd object"])
def test_modules_that_hold_what_cannot_be_compared_are_run(what):
    net, x = nn.ModuleDict({"holds": Holds(what)}).requires_grad_(False), vectors()
    cache = cache_of(net)
    for _ in range(4):
        cache.open()
        assert torch.equal(net["holds"](x) + 0, net["holds"](x))
        cache.close()
    assert "holds" in cache.refused and cache.use.hits == 0


@pytest.mark.parametrize("change", ["no_grad", "data", "new data", "load", "buffer", "mode", "swap and back"])
def test_a_front_that_changes_is_another_front(change):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)), torch.rand(8, 6)
    net[:2].requires_grad_(False)
    net.eval()
    cache = cache_of(net)
    state = copy.deepcopy(net.state_dict())
    for step in range(12):
        if step == 6:
            with torch.no_grad():
                if change == "no_grad":
                    net[0].weight.add_(1)
                elif change == "data":
                    net[0].weight.data.mul_(2)
                    cache.end_epoch()  # it shows in nothing but the values, which are read once an epoch
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
    assert cache.use.hits >= 8


def test_what_a_module_reads_from_elsewhere_is_noticed_within_an_epoch():
    factor = [1.0]

    class Reads(nn.Linear):
        def forward(self, x):
            return super().forward(x) * GLOBAL[0]

    global GLOBAL
    GLOBAL = factor
    net, x = nn.Sequential(Reads(6, 6), nn.Linear(6, 3)), vectors()
    net[0].requires_grad_(False)
    cache = cache_of(net)
    for step in range(8):
        if step == 5:
            factor[0] = 3.0
            cache.end_epoch()
        cache.open()
        out = net(x)
        cache.close()
        assert torch.allclose(out, net(x), atol=1e-6), step
    assert "0 gives something else than what was kept" in cache.use.stopped


def test_a_front_that_is_changed_between_its_call_and_its_use_stops_the_training():
    net, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)), vectors()
    net[:2].requires_grad_(False)
    cache = cache_of(net)
    for _ in range(3):
        cache.open()
        net(x)
        cache.close()
    cache.open()
    h = net[0](x)  # known samples: it waits
    with torch.no_grad():
        net[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="cache_front: 0 was changed after it was called"):
        h.sum()
