"""Shadow weights: what they own, and what they share with the model."""

from collections import OrderedDict

import pytest
import torch
from staging import moved, quiet_mlp
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from smartfrz_lightning.engine.attributes import attributes, attributes_as
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


class Frozen(dict):
    """Like a config that takes nothing after it was made."""

    def clear(self):
        raise TypeError("frozen")

    __setitem__ = clear


def test_attributes_are_as_they_were_for_a_while():
    net = nn.Linear(2, 2)
    net.output, net.calls = SequenceClassifierOutput(loss=torch.zeros(2)), [0]
    begun = attributes([net], {})
    net.output.loss, net.calls[0], net.late = torch.ones(2), 1, "set since"
    output, calls = net.output, net.calls
    with attributes_as(begun, {}):
        assert calls == [0] and output.loss.equal(torch.zeros(2)) and not hasattr(net, "late")
        calls.append(2)
    assert calls == [1] and output["loss"].equal(torch.ones(2)) and net.late == "set since"


@pytest.mark.parametrize(("width", "copied"), [(4, True), (400, False)])
def test_a_teacher_in_a_list_is_as_it_was_unless_it_dwarfs_the_model(width, copied):
    net, teacher = nn.Linear(4, 4), nn.Linear(4, width)
    net.others, before = [teacher], teacher.weight
    begun = attributes([net], {}, most=32)
    with torch.no_grad():
        teacher.weight.zero_()
    with attributes_as(begun, {}):
        assert bool(teacher.weight.any()) == copied and isinstance(teacher.weight, nn.Parameter)
    assert teacher.weight is before and not teacher.weight.any()


def test_attributes_that_cannot_be_set_lose_nothing():
    net = nn.Linear(2, 2)
    net.calls, net.config = [0], Frozen(rate=torch.ones(2))
    begun = attributes([net], {})
    net.calls[0] = 1
    with pytest.raises(TypeError, match="frozen"), attributes_as(begun, {}):
        pass
    assert net.calls == [1] and net.config["rate"].equal(torch.ones(2))
