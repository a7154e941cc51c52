"""Frozen is bitwise still, the rest trains as if the same had been frozen by hand."""

import copy

import pytest
import torch
from models import Classifier, Manual, mlp, two
from scripted import ScriptedFreeze, States

from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.layers.finder import find_layers

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


def test_lbfgs_leaves_frozen_layers_alone(make_trainer):
    # Its state hangs on the first parameter, which trains on here.
    watch, freezer = States(), ScriptedFreeze({3: [1, 2]})
    trainer = make_trainer(freezer, watch, max_epochs=1)
    trainer.fit(Classifier(mlp(norm=False), OPTIMIZERS["lbfgs"]))
    for name in (name for layer in freezer.layers[1:3] for name in layer.parameters):
        assert torch.equal(watch.states[2][name], watch.states[-1][name]), name


def test_every_optimizer_keeps_something_to_train(make_trainer):
    model, freezer = Manual(mlp(), two(4)), ScriptedFreeze({2: [0, 1, 2]})
    make_trainer(freezer, max_epochs=1).fit(model)
    assert freezer.layers[0].name == "net.0" and "net.0" not in freezer.frozen
    assert freezer.frozen == ["net.4", "net.7"]
    assert freezer.timeline.notes == [
        "'net.0' goes on training: it is the last thing that one of the optimizers trains."
    ]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizer_step_right_after_the_freeze_moves_nothing(kind, set_to_none):
    net, x = mlp(norm=False), torch.randn(8, 12)
    optimizer = OPTIMIZERS[kind](net.parameters())
    for _ in range(2):
        optimizer.zero_grad(set_to_none)
        net(x).sum().backward()
        optimizer.step()
    layer = find_layers(net, x)[0]
    freeze(net, [layer], [optimizer])
    before = copy.deepcopy(net.state_dict())
    optimizer.step()
    optimizer.zero_grad(set_to_none)
    net(x).sum().backward()
    optimizer.step()
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(before[name], tensor)}
    assert moved and not moved & set(layer.parameters)
