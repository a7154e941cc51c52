"""What goes in and out of a cached module: containers, views, memory layout, unusual tensors, failures."""

import gc

import pytest
import torch
from cached import cache_of, same, steps, vectors
from torch import nn

from smartfrz_lightning.cache.fingerprint import Fingerprint


def net_of(head=None, **modules):
    torch.manual_seed(0)
    net = nn.ModuleDict(modules).requires_grad_(False)
    net["head"] = head or nn.Linear(6, 3)
    return net


class Calls(nn.Module):
    """Calls a function, after a frozen layer of its own or without."""

    def __init__(self, function, layer=False):
        super().__init__()
        self.function, self.layer = function, nn.Linear(6, 6) if layer else nn.Identity()

    def forward(self, *args):
        return self.function(self.layer(args[0]), *args[1:])


def collected(h, found):
    found.append(h * 2)
    return h


def noted(h, found):
    found["aux"] = h.square()
    return h


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("layer", [False, True])
def test_what_a_module_writes_into_a_list_or_a_dict_arrives(layer, behind):
    net = net_of(first=nn.Linear(6, 6), list=Calls(collected, layer), dict=Calls(noted, layer))
    net["trained"] = nn.Linear(6, 6)

    def step(net, x, number):
        h, many, named = net["first"](x), [], {}
        h = net["trained"](h) if behind else h
        h = net["dict"](net["list"](h, many), named)
        assert len(many) == 1
        return net["head"](h + many[0] + named["aux"])

    same(net, vectors(), step)


def view_of_a_view(net, p):
    net["module"](p).mul_(2)
    return p.view(len(p), 6)


def one_of_two(net, p):
    first, _ = net["module"](p)
    first.mul_(3)
    return p


def given_twice(net, p):
    return net["module"](p, p)


def after_an_error(net, p):
    with pytest.raises(ValueError):
        net["module"](p)
    return p


def fails(x):
    x.mul_(2)
    raise ValueError


BOUNDARIES = {
    "a view that is written to": (lambda x: x.view(len(x), 2, 3), view_of_a_view),
    "its input beside something else": (lambda x: (x, x * 2), one_of_two),
    "written to and given twice": (lambda a, b: a.mul_(2) + b, given_twice),
    "asks whether two inputs are one": (lambda a, b: a * 2 if a is b else a * 3, given_twice),
    "writes and fails": (fails, after_an_error),
}


@pytest.mark.parametrize("what", BOUNDARIES)
def test_a_module_and_its_input(what):
    function, use = BOUNDARIES[what]
    net = net_of(first=nn.Linear(6, 6), module=Calls(function))
    same(net, vectors(), lambda net, x, number: net["head"](use(net, net["first"](x))))


class Minus(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, x):
        return (x.view(len(x), 2, 3) - self.values).reshape(len(x), 6)


def test_buffers_of_the_same_bytes_and_another_shape_or_type_are_others():
    values = torch.tensor([0.1, 0.5]).view(2, 1)
    net = net_of(first=nn.Linear(6, 6), one=Minus(values.repeat(1, 3)), other=Minus(values.repeat(1, 3)))

    def step(net, x, number):
        h = net["first"](x)
        if number == 201:
            net["other"].values = net["other"].values.reshape(6)[:3]
        return net["head"](net["one"](h)) + net["head"](net["other"](h)).square()

    same(net, vectors(), step, hits=True)
    digests = {
        Fingerprint(Minus(torch.zeros(shape, dtype=dtype)))()
        for shape in (3, (3, 1))
        for dtype in (torch.float32, torch.int32)
    }
    assert len(digests) == 4


def test_an_encoder_that_is_not_kept_pads_as_ever():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.encoder(self.embed(x), src_key_padding_mask=x == 0).sum(1))

    torch.manual_seed(0)
    net, ids = Encoder().eval(), torch.randint(1, 11, (12, 5), generator=torch.Generator().manual_seed(0))
    ids[:, 3:] = 0
    net.requires_grad_(False), net.head.requires_grad_(True)
    plain, kept, *_ = steps(net, ids, lambda net, x, number: net(x), epochs=6)
    assert kept == pytest.approx(plain, rel=1e-5)


class Size(nn.Linear):
    size = 5

    def forward(self, x):
        self.size = len(x)
        return super().forward(x)


def test_checks_leave_no_trace_on_a_module():
    net = net_of(first=Size(6, 6))
    net["first"].size = 4
    same(net, vectors(), lambda net, x, number: net["head"](net["first"](x)) * net["first"].size, batch=4)


class Double(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_module_of_another_class_computes_by_that():
    net = net_of(first=nn.Linear(6, 6))

    def step(net, x, number):
        net["first"].__class__ = Double if number >= 202 else nn.Linear
        return net["head"](net["first"](x))

    same(net, vectors(), step, hits=True)


def test_sentences_that_are_cut_to_the_longest_of_the_batch():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 6)

        def forward(self, x):
            return self.embed(x[:, :6])[:, : x[:, 6].max()]

    for seed in range(6):
        ids = torch.randint(3, 7, (12, 7), generator=torch.Generator().manual_seed(seed))
        plain, kept, *_ = steps(net_of(cut=Cut()), ids, lambda net, x, _: net["head"](net["cut"](x)).sum(1), epochs=6)
        assert kept == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("function", [torch.Tensor.to_sparse, lambda h: torch.nested.nested_tensor(list(h))])
def test_outputs_that_are_no_plain_tensors_are_handed_on(function):
    net = net_of(first=Calls(function, layer=True))

    def step(net, x, number):
        rows = [row.to_dense() if row.is_sparse else row for row in net["first"](x).unbind()]
        return net["head"](torch.stack(rows))

    same(net, vectors(), step)


def test_what_is_looked_up_lies_in_memory_as_what_was_computed():
    net = net_of(head=nn.Linear(12, 3), first=nn.Conv1d(2, 4, 1), turn=Calls(lambda h: h.transpose(1, 2) * 1))

    def step(net, x, number):
        h = net["turn"](net["first"](x.view(len(x), 2, 3)))
        return net["head"](h.transpose(1, 2).view(len(x), 12))

    same(net, vectors(), step, hits=True)


def test_what_another_call_waits_for_is_read_under_inference_mode():
    net = net_of(first=nn.Linear(6, 6), second=nn.Linear(6, 6))

    def step(net, x, number):
        p = net["first"](x)
        q = net["second"](p)
        with torch.inference_mode():
            mean = float(p.mean())
        return net["head"](p) + net["head"](q) + mean

    same(net, vectors(), step, hits=True)


def test_a_batch_that_cannot_be_closed_leaves_the_forward_passes_as_they_were():
    net, x = net_of(first=nn.Linear(6, 6), second=nn.Linear(6, 6)), vectors()
    cache = cache_of(net)
    for _ in range(3):
        cache.open()
        net["head"](net["second"](net["first"](x)))
        cache.close()
    cache.open()
    held = net["first"](x)
    with torch.no_grad():
        net["first"].weight.add_(1)
    with pytest.raises(RuntimeError, match="was changed after it was called"):
        cache.close()
    del held
    assert not any("forward" in vars(module) for module in net.modules())
    cache.stop()


def test_no_activation_is_held_beside_the_rows():
    width = 500
    net = nn.Sequential(*(nn.Linear(width, width) for _ in range(8)), nn.Linear(width, 3)).requires_grad_(False)
    net[-1].requires_grad_(True)
    cache, x = cache_of(net, gigabytes=1e-6), torch.rand(400, width)
    for _ in range(3):
        cache.open()
        net(x)
        cache.close()
    gc.collect()
    activations = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.untyped_storage().nbytes() == x.nbytes]
    assert len(activations) == 1  # the input


def test_a_module_that_is_refused_and_then_removed_is_still_told():
    net, x = net_of(noise=Calls(lambda h: h * torch.rand(()), layer=True), clean=nn.Linear(6, 6)), vectors()
    cache = cache_of(net)
    cache.open()
    net["head"](net["clean"](net["noise"](x)))
    cache.close()
    del net["noise"]
    cache.end_epoch()
    assert cache.use.ends == "noise: it draws random numbers"
