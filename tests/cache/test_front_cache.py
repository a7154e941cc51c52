"""A training with the front cache is the one without, over networks, data and growing fronts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cached import NETS, OPTIMIZERS, Convolutions, Images, cache_of, images, steps, train, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(sorted(NETS)),
    depth=st.integers(1, 3),
    grow=st.integers(0, 2),
    batch=st.integers(3, 9),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    accumulate=st.integers(1, 2),
    double=st.booleans(),
)
def test_a_training_with_the_cache_is_the_one_without(kind, depth, grow, batch, optimizer, accumulate, double):
    make, data = NETS[kind]
    torch.manual_seed(1)
    net = make()
    depth = min(depth, 2) if kind == "sequence" else depth
    grow = 0 if kind == "sequence" else grow
    x = data(20)
    if double:
        net, x = net.double(), x if kind == "tokens" else x.double()
    other = copy.deepcopy(net)
    how = {"epochs": 6, "batch": batch, "grow": grow, "optimizer": optimizer, "accumulate": accumulate}
    plain = train(net, x, depth, **how)
    cache = cache_of(other)
    cached = train(other, x, depth, cache, **how)
    assert cache.on and (cache.use.hits > 0 or (kind, batch) == ("tokens", 7)), cache.use  # as many tokens as samples
    # Kernels may depend on who shares a batch, so that the last bits differ.
    near = 1e-9 if double else 2e-3
    assert cached == pytest.approx(plain, rel=near, abs=near)
    assert torch.allclose(weights(other), weights(net), rtol=near, atol=near * 10)
    cache.stop()


def test_losses_are_the_same_bit_for_bit_where_no_kernel_depends_on_the_batch():
    torch.manual_seed(1)
    net = Images()
    other = copy.deepcopy(net)
    cache = cache_of(other)
    assert train(net, images(21), 3) == train(other, images(21), 3, cache)
    assert cache.use.hits >= 21 and cache.use.hits + cache.use.misses == 84
    assert torch.equal(weights(net), weights(other))


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_under_autocast_it_keeps_what_autocast_gives(kind):
    make, data = NETS[kind]
    torch.manual_seed(1)
    net = make()
    other = copy.deepcopy(net)
    cache = cache_of(other)
    plain, cached = (
        train(n, data(20), 2, c, epochs=6, batch=5, autocast=True) for n, c in ((net, None), (other, cache))
    )
    assert cache.use.hits > 0 and cached == pytest.approx(plain, rel=2e-2)


def test_old_entries_are_carried_on_when_the_front_grows():
    torch.manual_seed(1)
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(6)))
    runs = []

    class Counts(nn.Linear):
        def forward(self, x):
            if self.weight is net[0].weight:  # checks call it with copies
                runs.append(len(x))
            return super().forward(x)

    net[0] = Counts(6, 6)
    train(net, torch.rand(20, 6), 2, cache := cache_of(net), epochs=6, grow=2, batch=5)
    # The first epoch, some of the second, a check when the front has grown, and a comparison in each epoch.
    assert cache.on and sum(runs[:-6]) < 60


def test_inputs_in_another_order_are_another_call():
    class Differs(nn.Module):
        def forward(self, one, two):
            return one - two

    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "minus": Differs(), "head": nn.Linear(6, 3)})
    net["a"].requires_grad_(False), net["b"].requires_grad_(False)

    def step(net, x, number):
        a, b = net["a"](x), net["b"](x)
        return net["head"](net["minus"](a, b) if number % 2 else net["minus"](b, a))

    plain, kept, *_, cache = steps(net, torch.randn(12, 6), step, epochs=6)
    assert kept == pytest.approx(plain, rel=1e-5) and cache.use.hits > 0


def test_the_same_image_under_another_mask_is_another_sample():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.front, self.body, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

        def forward(self, x, mask):
            return self.head(self.body(self.front(x) * mask[:, None]).mean((2, 3)))

    torch.manual_seed(0)
    net, x = Masked(), images(6)
    net.front.requires_grad_(False), net.body.requires_grad_(False)
    cache, masks = cache_of(net), torch.rand(4, 6, 7, 7)
    for mask in (*masks, *masks, *masks):
        cache.open()
        out = net(x, mask)
        cache.close()
        assert torch.allclose(out, net(x, mask), atol=1e-6)
    assert cache.use.misses == 24 and cache.use.hits == 48


class InPlace(nn.Sequential):
    """Blocks as those of torchvision: activations write in place, and a shortcut is added in place."""

    def forward(self, x):
        x = F.relu(self[0](x), inplace=True)
        y = self[1](x).mul_(0.5)
        y += x
        y = self[2](F.relu_(y))
        return self[4](F.relu(self[3](y), inplace=True).mean((2, 3)))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_nothing_of_the_front_runs_for_known_samples_where_it_writes_in_place(depth):
    torch.manual_seed(0)
    net = InPlace(*(nn.Conv2d(3 if n == 0 else 4, 4, 3, padding=1) for n in range(4)), nn.Linear(4, 2))
    for layer in net[:depth]:
        layer.requires_grad_(False)
    other, x, ran = copy.deepcopy(net), torch.rand(6, 3, 12, 12), []
    cache = cache_of(net)
    for _ in range(8):
        cache.open()
        with Convolutions() as count:
            loss = net(x).square().sum()
            cache.close()  # what somebody still holds is computed here
        ran.append(count.count)
        for model in (loss, other(x).square().sum()):
            model.backward()
        for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
            assert mine.grad is None or torch.allclose(mine.grad, theirs.grad, atol=1e-5)
    assert ran[-1] == 4 - depth, ran


def test_a_backbone_without_gradients_is_kept_and_validation_is_computed():
    net, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), torch.rand(8, 6)
    net[0].requires_grad_(False)
    cache = cache_of(net)
    for _ in range(5):
        cache.open()
        with torch.no_grad():
            h = net[0](x)
        net[1](h).sum().backward()
        cache.close()
    assert cache.use.hits == 3 * 8
    assert "forward" not in vars(net[0]) and type(net[0](x)) is torch.Tensor


def test_checkpointed_blocks_give_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(4))
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return self.head(x)

    torch.manual_seed(0)
    net = Net()
    other = copy.deepcopy(net)
    cache, data = cache_of(other), torch.ones(9, 6).cumsum(0)
    plain = train(net, data, 2, epochs=8)
    assert train(other, data, 2, cache, epochs=8) == pytest.approx(plain, rel=1e-5)
    assert cache.use.hits > 0


def test_the_budget_is_kept_to_and_what_does_not_fit_is_computed():
    net = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 3)).double()
    other, data = copy.deepcopy(net), torch.randn(20, 6).double()
    size = 12 * (80 + 200)  # twelve rows of ten numbers, with their keys
    cache = cache_of(other, gigabytes=size / 1e9)
    plain = train(net, data, 1, epochs=9, batch=2)
    assert train(other, data, 1, cache, epochs=9, batch=2) == pytest.approx(plain, rel=1e-9)
    assert 0.9 * size / 1e9 < cache.use.gigabytes <= size / 1e9 and cache.use.hits > 0


def test_a_smaller_type_takes_half_of_the_room():
    torch.manual_seed(0)
    net, caches, losses = nn.Sequential(nn.Linear(6, 900), nn.Linear(900, 3)), [], []
    data = torch.randn(20, 6)
    for dtype in (None, torch.bfloat16):
        own = copy.deepcopy(net)
        caches.append(cache_of(own, dtype=dtype))
        losses.append(train(own, data, 1, caches[-1], batch=5))
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)
    assert caches[1].use.gigabytes < 0.6 * caches[0].use.gigabytes
