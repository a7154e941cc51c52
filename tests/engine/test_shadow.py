"""Shadow weights: what they own, and what they share with the model."""

from collections import OrderedDict

import torch
from staging import (
    moved,
    quiet_mlp,
)  # fmt: skip
from torch import nn

from smartfrz_lightning.engine.shadow import ShadowWeights


def test_shadow_weights_share_what_never_moves_and_own_what_trains():
    net = quiet_mlp()
    net[0].requires_grad_(False)
    shadow = ShadowWeights(net, torch.optim.SGD(net.parameters(), 0.1), [])
    assert "0.weight" not in shadow.tensors and "4.weight" in shadow.tensors and "1.running_mean" in shadow.tensors
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def body():
        net(torch.rand(8, 12)).square().sum().backward()
        shadow.optimizer.step()
        net.order = OrderedDict(a=1)

    shadow.swapped(body)
    assert moved(before, net.state_dict()) == set() and not hasattr(net, "order")
    assert not torch.equal(shadow.tensors["4.weight"], net[4].weight)
    assert not torch.equal(shadow.tensors["1.running_mean"], net[1].running_mean)


def test_tied_weights_are_one_in_the_shadow():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    shadow = ShadowWeights(net, torch.optim.SGD(net.parameters(), 0.1), [])
    shadow.swapped(lambda: net(torch.rand(2, 4)).sum().backward())
    assert net[2].weight is net[0].weight and shadow.tensors["0.weight"].grad is not None
