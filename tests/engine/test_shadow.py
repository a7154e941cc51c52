"""Shadow weights: what they own, and what they share with the model."""

from collections import OrderedDict

import torch
from staging import moved, quiet_mlp
from torch import nn

from smartfrz_lightning.engine.attributes import attributes
from smartfrz_lightning.engine.shadow import ShadowWeights


def test_shadow_weights_own_what_trains_and_what_may_move():
    net = quiet_mlp()
    net[0].requires_grad_(False)
    shadow = ShadowWeights(net, torch.optim.SGD(net.parameters(), 0.1), [])
    assert {"0.weight", "4.weight", "1.running_mean"} <= shadow.tensors.keys()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def body():
        net(torch.rand(8, 12)).square().sum().backward()
        shadow.optimizer.step()
        net.order = OrderedDict(a=1)

    shadow.swapped(body, attributes(net.modules(), {}))
    assert moved(before, net.state_dict()) == set() and not hasattr(net, "order")
    assert not torch.equal(shadow.tensors["4.weight"], net[4].weight)
    assert not torch.equal(shadow.tensors["1.running_mean"], net[1].running_mean)


def test_tied_weights_are_one_in_the_shadow():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    shadow = ShadowWeights(net, torch.optim.SGD(net.parameters(), 0.1), [])
    shadow.swapped(lambda: net(torch.rand(2, 4)).sum().backward(), [])
    assert net[2].weight is net[0].weight and shadow.tensors["0.weight"].grad is not None


def test_a_frozen_backbone_that_dwarfs_what_trains_is_shared():
    net = nn.Sequential(nn.Linear(4, 400).requires_grad_(False), nn.Linear(400, 1))
    shadow = ShadowWeights(net, torch.optim.SGD(net[1].parameters(), 0.1), [])
    assert shadow.tensors.keys() == {"1.weight", "1.bias"}
