"""What is reported is so: FLOPs by what every batch really is."""

import json
import time

import pytest
from models import Classifier, mlp
from scripted import ScriptedFreeze
from torch import nn

from smartfrz_lightning.report.timeline import FreezeEvent, Timeline


class Looked(nn.Module):
    """No product is counted: rows of two tables, multiplied by each other."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Embedding(8, 3), nn.Embedding(8, 3)

    def forward(self, x):
        return self.left((x[:, 0] > 0).long()) * self.right((x[:, 1] > 0).long())


class BitFit(nn.Module):
    """Only biases train."""

    def __init__(self):
        super().__init__()
        self.net = mlp(norm=False)
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("net", [Looked, BitFit])
def test_networks_in_which_no_product_trains_are_booked(make_trainer, net):
    freezer = ScriptedFreeze({})
    make_trainer(freezer, max_epochs=2, limit_val_batches=0).fit(Classifier(net()))
    forward = freezer.timeline.cost.full.forward
    assert len(freezer.layers) >= 2 and (forward > 0) == (net is BitFit)
    assert freezer.timeline.full.forward == pytest.approx(forward * 2 * 61 / 8, rel=0.01)
    assert Timeline.from_state_dict(json.loads(json.dumps(freezer.timeline.state_dict()))) == freezer.timeline


def test_reported_numbers_by_hand():
    timeline = Timeline(steps=5)
    timeline.change({"a": 0.9, "b": None}, [], epoch=1.25, step=5)
    timeline.change({}, ["a"], epoch=2.0, step=8)
    assert timeline.events == [
        FreezeEvent("a", 5, 1.25, 0.9),
        FreezeEvent("b", 5, 1.25, None),
        FreezeEvent("a", 8, 2.0, None, "thaw"),
    ]
    assert timeline.frozen == ["b"] and timeline.periods("a") == [(5, 8)]
    assert Timeline.from_state_dict(timeline.state_dict()) == timeline


def test_seconds_of_fit_add_up_over_saving_and_resuming():
    began = time.perf_counter()
    timeline = Timeline()
    time.sleep(0.02)
    again = Timeline.from_state_dict({**timeline.state_dict(), "fit_seconds": timeline.seconds()})
    assert 0.02 <= again.seconds() <= time.perf_counter() - began
