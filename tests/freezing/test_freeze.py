"""Frozen is bitwise still, the rest trains as if the same had been frozen by hand."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from models import Classifier, Manual, mlp, two
from scripted import ScriptedFreeze
from torch import nn

from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.layers.finder import find_layers

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


class Watch(Callback):
    """State after every batch, taken after the freezing callback had its turn."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append({name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()})


def test_lbfgs_leaves_frozen_layers_alone(make_trainer):
    # Its state hangs on the first parameter, which trains on here.
    watch, freezer = Watch(), ScriptedFreeze({3: [1, 2]})
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


@pytest.mark.parametrize("numbers", [[0], [0, 1], [1], [0, 2]])
def test_loss_and_gradients_equal_those_of_a_model_frozen_by_hand(numbers):
    x, y = torch.randn(8, 12), torch.randint(3, (8,))
    ours, by_hand = mlp(), mlp()
    by_hand.load_state_dict(ours.state_dict())
    freeze(ours, [find_layers(ours, x)[number] for number in numbers])
    linears = [module for module in by_hand if isinstance(module, nn.Linear)]
    norms = {linears[0]: by_hand[1], linears[1]: by_hand[5]}
    for number in numbers:
        linears[number].requires_grad_(False)
        if linears[number] in norms:
            norms[linears[number]].requires_grad_(False).eval()
    results = []
    for net in (ours, by_hand):
        torch.manual_seed(1)
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        results.append([loss, *(p.grad for p in net.parameters())])
    for mine, theirs in zip(*results, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)
