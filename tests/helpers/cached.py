"""Small networks with all that a front cache has to get right, and a training with one or without."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from smartfrz_lightning.cache.front_cache import FrontCache
from smartfrz_lightning.cache.pays import Pays
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.layers import find_layers


class GoesOn(Pays):
    """Never stops, and keeps all that is asked for: small networks are computed faster than looked up."""

    def batch_ends(self, *args):
        super().batch_ends(*args)
        return ""

    def epoch_ends(self, full):
        super().epoch_ends(full)
        return ""


def cache_of(net, *args, **kwargs):
    return FrontCache(net, *args, **kwargs, pays=GoesOn())


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
            cache.watch()

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
        if cache is not None:
            cache.end_epoch()
    return losses


def weights(net):
    """All but the biases of keys: their gradient is zero except for rounding, which AdamW turns into whole steps."""
    state = {name: tensor.double().flatten() for name, tensor in net.state_dict().items()}
    for name in [name for name in state if name.endswith("in_proj_bias")]:
        query, _, value = state[name].chunk(3)
        state[name] = torch.cat([query, value])
    return torch.cat(list(state.values()))


def steps(net, data, step, epochs=4, batch=5, cached=True, prepare=lambda net: None):
    """Losses of ``step(net, x, number)`` without the cache and with it, the weights then, and the cache."""
    found = []
    for with_cache in (False, True):
        own = copy.deepcopy(net)
        prepare(own)
        cache = cache_of(own) if with_cache else None
        optimizer, losses = torch.optim.SGD([p for p in own.parameters() if p.requires_grad], 0.1), []
        for epoch in range(epochs):
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
            for number, index in enumerate(order.split(batch)):
                torch.manual_seed(epoch * 100 + number)
                if cache is not None:
                    cache.open()
                optimizer.zero_grad()
                loss = step(own, data[index].clone(), epoch * 100 + number).square().mean()
                loss.backward()
                if cache is not None:
                    cache.close()
                optimizer.step()
                losses.append(loss.item())
            if cache is not None:
                cache.end_epoch()
        found.append((losses, own))
    (plain, one), (kept, other) = found
    return plain, kept, one, other, cache


def same(net, data, step, hits=None, **how):
    """The same losses with the cache, in double precision; whether it knew samples."""
    plain, kept, _, other, cache = steps(net.double(), data.double(), step, epochs=6, **how)
    assert kept == pytest.approx(plain, rel=1e-9, abs=1e-12)
    assert hits is None or (cache.use.hits > 0) == hits, (cache.use, cache.refused)
    return cache


def vectors(count=12):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0))


class Convolutions(TorchDispatchMode):
    """Counts those that are computed forward."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))
