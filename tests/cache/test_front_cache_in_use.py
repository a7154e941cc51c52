"""What users do in a training step besides, each against the same without the front cache."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cached import cache_of, same, vectors
from torch import nn


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6))
        self.head, self.extra, self.alpha = nn.Linear(6, 3), nn.Linear(6, 6), 1.0
        self.front.requires_grad_(False)


def eval_around(net, x, step):
    net.front.eval()
    h = net.front(x)
    net.front.train()
    return net.head(h)


def conditioned(net, x, step):
    net.front.cond = net.extra(x)  # read by the module below
    return net.head(net.front(x))


def weights_swapped(net, x, step):
    first = net.front.eval()(x)
    with torch.no_grad():
        net.front[0].weight.mul_(2)
        second = net.front(x)
        net.front[0].weight.div_(2)
    return net.head(first + second.detach())


def thawed_in_the_step(net, x, step):
    net.front.eval().requires_grad_(True)
    out = net.head(net.front(x))
    net.front.requires_grad_(False)
    return out


def two_modes(net, x, step):
    net.front = net.front if isinstance(net.front, Doubles) else Doubles(net.front)
    one, two = net.front.train()(x), net.front.eval()(x)
    return net.head(one - two)


class Doubles(nn.Module):
    """Twice as much in training mode."""

    def __init__(self, front):
        super().__init__()
        self.front = front[3]

    def forward(self, x):
        return self.front(x) * (1 + self.training)


def dropped_in_place(net, x, step):
    h = net.front.eval()(x)
    torch.manual_seed(step)
    F.dropout(h, 0.5, True, True)
    return net.head(h)


def chosen_by_mask(net, x, step):
    chosen = (h := net.front.eval()(x))[h[:, 0] > 0]
    return net.head(h) * chosen.shape[0] + net.head(chosen).sum()


def centred(net, x, step):
    if not hasattr(net, "centre"):
        net.centre = torch.zeros(6, dtype=x.dtype)
    h = net.front.eval()(x) - net.centre
    net.centre.lerp_(x.mean(0), 0.5)
    return net.head(h)


def differentiated(net, x, step):
    h = net.front.eval()(x)
    h.requires_grad_()
    [grad] = torch.autograd.grad(net.head(h).square().sum(), h, create_graph=True)
    return net.head(grad)


def empty_at_times(net, x, step):
    return net.head(net.front.eval()(x[: 0 if step % 3 == 2 else None])).sum(0, keepdim=True) + net.head.bias


def mixed(net, x, step):
    return net.head(net.front.eval()(x).flip(0))


@pytest.mark.parametrize(
    "what",
    [eval_around, weights_swapped, thawed_in_the_step, dropped_in_place, two_modes]
    + [chosen_by_mask, centred, differentiated, empty_at_times, mixed, conditioned],
)
def test_whatever_a_training_step_does(what):
    torch.manual_seed(0)
    net = Teacher()
    if what is conditioned:
        net.front[2] = Conditioned(net.front)
    same(net, vectors(), lambda net, x, number: what(net.train(), x, number), batch=5)


class Conditioned(nn.Module):
    """Adds what is set on another module: no argument, no parameter."""

    def __init__(self, holder):
        super().__init__()
        self.holder = [holder]

    def forward(self, x):
        return x + self.holder[0].cond


def test_copies_and_files_made_in_the_middle_of_a_batch(tmp_path):
    net, x = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3)), torch.rand(4, 6)
    net[0].requires_grad_(False)
    cache = cache_of(net)
    cache.open()
    net(x)
    snapshot = copy.deepcopy(net)
    torch.save(net, tmp_path / "net.pt")
    cache.close()
    before = snapshot(x)
    with torch.no_grad():
        net[0][0].weight.zero_()
    assert torch.equal(snapshot(x), before) and not torch.equal(net(x), before)
    assert torch.equal(torch.load(tmp_path / "net.pt", weights_only=False)(x), before)


@pytest.mark.parametrize("part", [0, None])
def test_another_forward_or_a_hook_in_the_middle_of_a_training(part):
    net, x, seen = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3)), torch.rand(4, 6), []
    net[0].requires_grad_(False)
    cache = cache_of(net)
    for step in range(16):
        module = net[0] if part is None else net[0][part]
        if step == 6:
            hook = module.register_forward_hook(lambda *_: seen.append(True))
        if step == 9:
            hook.remove()
        if step == 12:
            module.forward = lambda x: x * 0
        cache.open()
        out = net(x)
        cache.close()
        assert torch.equal(out, net(x))
        assert step >= 12 or "forward" not in vars(net[0])
    assert len(seen) == 2 * 3 and vars(module)["forward"](x).sum() == 0


def test_what_is_asked_for_after_the_batch_is_what_it_was():
    torch.manual_seed(0)
    net, data, kept = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), torch.rand(20, 6), []
    net[0].requires_grad_(False)
    cache = cache_of(net)
    for step in range(12):
        x = data[torch.randperm(20, generator=torch.Generator().manual_seed(step))[:7]]
        cache.open()
        h = net[0](x)
        net[1](h)
        kept.append((h.mean(1), net[0].weight @ x.T))
        cache.close()
        with torch.no_grad():
            net[0].weight.mul_(1.01) if step == 8 else None
    for number, (mean, product) in enumerate(kept):
        assert torch.allclose(mean, product.mean(0) + net[0].bias.mean(), atol=1e-5), number
