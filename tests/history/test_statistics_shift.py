"""How far images lie from what a network was trained on, told by its running statistics."""

import copy

import pytest
import torch
from torch import nn

from smartfrz_lightning.history.statistics_shift import statistics_shift
from smartfrz_lightning.layers import find_layers
from smartfrz_lightning.stages.probe import Probe


def trained(momentum=0.1):
    """A network whose running statistics are those of its images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    for _ in range(200):
        net(images())
    return net


def images(count=16):
    return 0.3 + 0.2 * torch.rand(count, 3, 12, 12)


def buffers(net):
    return {name: tensor.clone() for name, tensor in net.named_buffers()}


def shift(net, change, batches=4, norms=("1", "4")):
    net, before = copy.deepcopy(net), buffers(net)
    for _ in range(batches):
        net(change(images()))
    return statistics_shift(net, norms, before, buffers(net))


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
@pytest.mark.parametrize("batches", [1, 4, 30])
def test_other_images_show_and_the_same_do_not(momentum, batches):
    net = trained(momentum)
    same = shift(net, lambda x: x, batches)
    assert 0 <= same < 0.05
    for change in (lambda x: 1 - x, lambda x: 0.3 * x, lambda x: x + 0.2 * torch.rand_like(x)):
        assert shift(net, change, batches) > max(0.1, 4 * same)
    moved = shift(net, lambda x: 1 - x, batches)
    assert moved == pytest.approx(shift(net, lambda x: 1 - x, 12), rel=0.5)  # of the images, not of how many there were


def test_it_is_the_divergence_of_normal_distributions():
    net = nn.BatchNorm1d(1, momentum=1.0)
    net.running_mean.fill_(1.0), net.running_var.fill_(4.0)
    before = buffers(net)
    x = torch.randn(100_000, 1) * 3 + 2
    net(x)
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(2, 3), torch.distributions.Normal(1, 2))
    before, after = ({f"0.{name}": tensor for name, tensor in kept.items()} for kept in (before, buffers(net)))
    assert statistics_shift(nn.Sequential(net), ["0"], before, after) == pytest.approx(float(expected), rel=0.05)


def test_the_first_norm_that_moves_counts():
    net = trained()
    net[1].eval()
    assert shift(net, lambda x: 1 - x) == pytest.approx(shift(net, lambda x: 1 - x, norms=("4",)), rel=0.2)
    net.eval()
    assert shift(net, lambda x: 1 - x) == 0.0
    without = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.LayerNorm(10))
    assert shift(without, lambda x: 1 - x, norms=("1", "2")) == 0.0
    unusual = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, momentum=0.0))
    assert shift(unusual, lambda x: 1 - x, norms=("0", "1")) == 0.0


def test_a_probe_measures_it_and_leaves_no_trace():
    net = trained()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    expected = shift(net, lambda x: 1 - x, 3)
    probe = Probe(net, [optimizer])
    probe.watch(find_layers(net, images(2)))
    before = buffers(net)
    for _ in range(3):
        probe.before_batch()
        net(1 - images()).square().sum().backward()
        probe.take_gradients(optimizer)
        optimizer.step()
        probe.batch_done(stepped=True)
    assert probe.shift() == pytest.approx(expected, rel=0.3) and probe.shift() > 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.named_buffers())
