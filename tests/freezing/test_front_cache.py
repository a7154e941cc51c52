"""The front cache is exact, or off: over networks, data, and whatever a user's training step does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from smartfrz_lightning.freezing import front_cache, front_units, sample_keys, sample_rows
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.freezing.front_cache import FrontCache
from smartfrz_lightning.freezing.sample_keys import row_sums
from smartfrz_lightning.layers import find_layers


class Residual(nn.Module):
    def __init__(self, channels, in_place):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=in_place)

    def forward(self, x):
        return self.relu(self.norm(self.conv(x)) + x)


class Images(nn.Module):
    """Convolutions that a container joins by functions, some of them in place."""

    def __init__(self, in_place=True):
        super().__init__()
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.stem, self.relu = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace=in_place)
        self.blocks = nn.Sequential(*(Residual(8, in_place) for _ in range(3)))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.max_pool2d(self.relu(self.stem(x - self.mean)), 3, 1, 1)
        first = self.blocks[:1](x)
        x = torch.cat([self.blocks[1:](first), first], 2).mean((2, 3))
        return self.head(x)


class Tokens(nn.Module):
    """Attention with a class token, positions, a mask, and sizes of the batch written out."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed, self.token = nn.Embedding(11, 16), nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 7, 16))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True, norm_first=True) for _ in range(3)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, ids):
        batch = ids.shape[0]
        mask = torch.cat([torch.zeros(batch, 1, dtype=torch.bool), ids == 0], 1)
        x = torch.cat([self.token.expand(batch, -1, -1), self.embed(ids)], 1) + self.position
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask)
        return self.head(x.view(batch, -1)[:, :16])


class Sequence(nn.Module):
    """A recurrent front that gives several outputs, with time in the first dimension of some."""

    def __init__(self):
        super().__init__()
        self.first, self.rnn = nn.Linear(5, 8), nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.mix, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        out, state = self.rnn(self.first(x))
        return self.head(self.mix(out).transpose(0, 1)[-1] + state[0])


def images(size, seed=0):
    return torch.rand(size, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


def tokens(size):
    return torch.randint(11, (size, 6), generator=torch.Generator().manual_seed(0))


def sequences(size):
    return torch.rand(size, 4, 5, generator=torch.Generator().manual_seed(0))


NETS = {"images": (Images, images), "tokens": (Tokens, tokens), "sequence": (Sequence, sequences)}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
}


def train(net, data, depth, cache=None, epochs=4, batch=7, grow=0, optimizer="sgd", accumulate=1, autocast=False):
    """Losses of a training with the first layers frozen, more of them from the third epoch on."""
    torch.manual_seed(0)
    labels = torch.arange(len(data)) % 3
    net.train()
    found = find_layers(net, data[:2])
    grow = min(grow, len(found) - 1 - depth)
    step_by = OPTIMIZERS[optimizer](net.parameters())

    def hold(count):
        freeze(net, found[:count], [step_by])
        if cache is not None:
            cache.watch([name for layer in found[:count] for name in layer.parameters])

    hold(depth)
    losses = []
    for epoch in range(epochs):
        if epoch == 2 and grow:
            hold(depth + grow)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
        for number, index in enumerate(order.split(batch)):
            for layer in found[: depth + grow * (epoch >= 2)]:
                for name in layer.stateful:
                    net.get_submodule(name).eval()
            if cache is not None:
                cache.open()
            with torch.autocast("cpu", torch.bfloat16, autocast):
                loss = F.cross_entropy(net(data[index]), labels[index])
            (loss / accumulate).backward()
            if cache is not None:
                cache.close()
            if (number + 1) % accumulate == 0:
                step_by.step()
                step_by.zero_grad()
            losses.append(loss.item())
    return losses


def weights(net):
    """All but the biases of keys: their gradient is zero except for rounding, which AdamW turns into whole steps."""
    state = {name: tensor.double().flatten() for name, tensor in net.state_dict().items()}
    for name in [name for name in state if name.endswith("in_proj_bias")]:
        query, _, value = state[name].chunk(3)
        state[name] = torch.cat([query, value])
    return torch.cat(list(state.values()))


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
    cache = FrontCache(other)
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
    cache = FrontCache(other)
    assert train(net, images(21), 3) == train(other, images(21), 3, cache)
    assert cache.use.misses < 84 / 2 and cache.use.hits + cache.use.misses == 84
    assert torch.equal(weights(net), weights(other))


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_under_autocast_it_keeps_what_autocast_gives(kind):
    make, data = NETS[kind]
    torch.manual_seed(1)
    net = make()
    other = copy.deepcopy(net)
    cache = FrontCache(other)
    plain, cached = (train(n, data(20), 2, c, autocast=True) for n, c in ((net, None), (other, cache)))
    assert cache.use.hits > 0 and cached == pytest.approx(plain, rel=2e-2)


def test_old_entries_are_carried_on_when_the_front_grows():
    torch.manual_seed(1)
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(6)))
    runs = []

    class Counts(nn.Linear):
        def forward(self, x):
            runs.append(len(x))
            return super().forward(x)

    net[0] = Counts(6, 6)
    train(net, torch.rand(20, 6), 2, cache := FrontCache(net), grow=2, batch=5)
    assert cache.on
    # Some batches at first, to see what the front is; then for samples that are new, and not any more.
    assert sum(runs) < 70 and sum(runs[-4:]) < 20  # of 82; the last ones are comparisons


def test_the_same_image_under_another_mask_is_another_sample():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.front, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x, mask):
            return self.head((self.front(x) * mask[:, None]).mean((2, 3)))

    torch.manual_seed(0)
    net, x = Masked(), images(6)
    net.front.requires_grad_(False)
    cache, masks = FrontCache(net), torch.rand(4, 6, 7, 7)
    for mask in (*masks, *masks, *masks):
        cache.open()
        out = net(x, mask)
        cache.close()
        assert torch.allclose(out, net(x, mask), atol=1e-6)
    assert cache.use.misses >= 24 and cache.use.hits >= 24


class CountConvolutions(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.forward = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.forward += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


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
    cache = FrontCache(net)
    for _ in range(8):
        cache.open()
        with CountConvolutions() as count:
            loss = net(x).square().sum()
            cache.close()  # what somebody still holds is computed here
        ran.append(count.forward)
        for model in (loss, other(x).square().sum()):
            model.backward()
        for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
            assert mine.grad is None or torch.allclose(mine.grad, theirs.grad, atol=1e-5)
    assert ran[0] == 4 and ran[-1] == 4 - depth, ran


def test_without_gradients_and_in_validation_everything_is_computed():
    net, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), torch.rand(8, 6)
    net[0].requires_grad_(False)
    cache = FrontCache(net)
    for _ in range(3):
        cache.open()
        with torch.no_grad():
            net(x)
        cache.close()
    assert cache.use.hits == cache.use.misses == 0
    assert "forward" not in vars(net[0]) and type(net[0](x)) is torch.Tensor


def test_hooks_inside_of_the_front_go_on_being_called():
    net, x, seen = nn.Sequential(nn.Sequential(nn.Linear(6, 6)), nn.Linear(6, 3)), torch.rand(8, 6), []
    net[0].requires_grad_(False)
    net[0][0].register_forward_hook(lambda module, inputs, out: seen.append(out.sum().item()))
    cache = FrontCache(net)
    for _ in range(4):
        cache.open()
        net(x)
        cache.close()
    assert len(seen) == 4 and len(set(seen)) == 1


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
    cache = FrontCache(other)
    plain = train(net, torch.ones(9, 6).cumsum(0), 2)
    assert train(other, torch.ones(9, 6).cumsum(0), 2, cache) == pytest.approx(plain, rel=1e-5)
    assert cache.use.hits > 0


def test_the_budget_is_kept_to_and_what_does_not_fit_is_computed():
    net = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 3))
    other = copy.deepcopy(net)
    cache = FrontCache(other, gigabytes=8 * 40 / 1e9)  # eight rows of ten floats
    plain = train(net, torch.ones(20, 6).cumsum(0), 1)
    assert train(other, torch.ones(20, 6).cumsum(0), 1, cache) == pytest.approx(plain, rel=1e-5)
    cache.end_epoch()
    assert cache.use.gigabytes == pytest.approx(8 * 40 / 1e9) and 8 <= cache.use.hits < 8 * 3


def test_half_of_the_room_costs_as_much_accuracy_as_it_says():
    torch.manual_seed(0)
    net = Images()
    other = copy.deepcopy(net)
    cache = FrontCache(other, dtype=torch.bfloat16)
    plain, cached = train(net, images(20), 2), train(other, images(20), 2, cache)
    assert cached != plain and cached == pytest.approx(plain, rel=0.05)
    assert 1e-4 < cache.use.rounding < 2**-7


def test_compiled_models_are_left_alone():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    net[1].compile(backend="eager")
    cache = FrontCache(net)
    cache.open()
    assert "forward" not in vars(net[0]) and cache.use.stopped == "the model is compiled"


def test_a_fit_with_keys_summed_by_a_gpu(monkeypatch):
    """On the CPU, where the same integers come out."""
    monkeypatch.setattr(sample_rows, "row_digests", lambda tensor: sample_keys._as_bytes(row_sums(tensor)))
    for module in (front_cache, front_units, sample_rows):
        monkeypatch.setattr(module, "digest", lambda tensor: sample_keys._as_bytes(row_sums(tensor.reshape(1, -1)))[0])
    torch.manual_seed(0)
    plain, data = Images(), images(20)
    kept = copy.deepcopy(plain)
    cache = FrontCache(kept)
    assert train(kept, data, 3, cache) == pytest.approx(train(plain, data, 3), rel=1e-5)
    assert cache.use.hits > 20
