"""Whatever a training step does to what the front gives, the front cache gives what the front would have given."""

import pytest
import torch
from cached import steps
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


class Mixture(nn.Module):
    """Frozen branches and a head: what a step does with what they give is drawn."""

    def __init__(self, tied, no_grad):
        super().__init__()
        self.one, self.two = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.mix, self.head, self.token = nn.Bilinear(6, 6, 6), nn.Linear(6, 3), nn.Parameter(torch.randn(6))
        if tied:
            self.two[0] = self.one[0]
        for part in (self.one, self.two, self.mix):
            part.requires_grad_(False)
        self.one.scale, self.no_grad = 1.0, no_grad


def masked(net, h, step):
    h[torch.rand(len(h)) < 0.5] = 0.5
    return h


def written_over(net, h, step):
    h[:, ::2] = 0
    return h


def added_to_a_slice(net, h, step):
    h[:, 1:] += 1
    return h


def written_through_a_view(net, h, step):
    h.view(-1)[0] = 3
    h.t()[1].mul_(2)
    return h


def written_as_data(net, h, step):
    h.data[0] += 1
    return h


def written_as_an_array(net, h, step):
    h.numpy()[:] *= 2
    return h


def given_as_out(net, h, step):
    torch.mul(h.clone(), 2, out=h)
    return h


def read(net, h, step):
    return h.flip(0) * 2


WRITES = [masked, written_over, added_to_a_slice, written_through_a_view, written_as_data, written_as_an_array]


WRITES += [given_as_out, read]


@settings(max_examples=60, deadline=None)
@given(
    first=st.sampled_from(WRITES),
    second=st.sampled_from(WRITES),
    used_before=st.booleans(),
    again=st.booleans(),
    changes=st.booleans(),
    tied=st.booleans(),
    no_grad=st.booleans(),
    batch=st.integers(2, 7),
)
def test_a_step_does_to_what_the_front_gives_what_it_would_do(
    first, second, used_before, again, changes, tied, no_grad, batch
):
    def step(net, x, number):
        def front():
            if changes:
                net.one.scale = 1.0 + number % 2  # an attribute of a frozen module
            one, two = net.one(x), net.two(x)
            if number % 3 == 1:
                one, two = two, one
            return one, two, net.mix(one, two)

        with torch.set_grad_enabled(not net.no_grad):
            one, two, mixed = front()
        total = mixed * 0
        if used_before:
            total = total + mixed
        one = first(net, one, number)
        total = total + net.mix(one, two)  # the front again, with what was written to
        mixed = second(net, mixed, number)
        if again:
            total = total + net.one(x)
        x.zero_()
        return net.head(total + mixed + one + x) + net.token.sum()

    torch.manual_seed(0)
    net, data = Mixture(tied, no_grad).double(), torch.randn(12, 6).double()
    plain, kept, one, other, cache = steps(net, data, step, batch=batch)
    assert kept == pytest.approx(plain, rel=1e-9, abs=1e-12)
    assert torch.allclose(one.head.weight, other.head.weight, rtol=1e-9) and cache.on
