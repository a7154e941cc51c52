"""Freeze, thaw, freeze: still while frozen, training while not, as if done by hand."""

import pytest
import torch
from models import Classifier, Vectors, mlp
from scripted import ScriptedFreeze, States
from torch import nn
from torch.utils.data import DataLoader

from smartfrz_lightning.engine import Freezer

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}
FREEZE, THAW = {3: [0, 2], 12: [0, 1]}, {8: [0, 2]}


def by_hand(optimizer):
    """The same freezing, written out: what a thawed layer gets back is a fresh optimizer state."""
    torch.manual_seed(1)
    net = mlp()
    optimizer = OPTIMIZERS[optimizer](net.parameters())
    parts = {0: [net[0], net[1]], 1: [net[4], net[5]], 2: [net[7]]}
    batches = (batch for _ in range(2) for batch in DataLoader(Vectors(76), 8))
    for step, (x, y) in enumerate(batches, 1):
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        for numbers, training in ((THAW.get(step, ()), True), (FREEZE.get(step, ()), False)):
            for number in numbers:
                parts[number][-1].training = training  # the norm
                for parameter in (p for module in parts[number] for p in module.parameters()):
                    parameter.requires_grad_(training)
                    optimizer.state.pop(parameter, None)
    return net.state_dict()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_as_by_hand(make_trainer, optimizer):
    torch.manual_seed(1)
    model = Classifier(mlp(), OPTIMIZERS[optimizer], size=76)  # the last of ten batches has four
    watch, freezer = States(), ScriptedFreeze(FREEZE, THAW)
    trainer = make_trainer(freezer, watch, max_epochs=2, limit_val_batches=0)
    trainer.fit(model)
    assert trainer.optimizers[0].state.keys() == {
        parameter for parameter in model.parameters() if parameter.requires_grad
    }
    assert [event.step for event in freezer.timeline.events] == [3, 3, 8, 8, 12, 12]
    assert freezer.frozen == ["net.0", "net.4"] and freezer.timeline.periods("net.0") == [(3, 8), (12, None)]
    for name in ("net.0.weight", "net.1.running_mean"):
        at = [state[name] for state in watch.states]
        for step in range(1, 20):
            still = 3 <= step < 8 or step >= 12
            assert torch.equal(at[step - 1], at[step]) == still, (name, step)
    for name, tensor in by_hand(optimizer).items():
        assert torch.equal(tensor, model.state_dict()[f"net.{name}"]), name


def test_flops_of_every_state_are_measured(make_trainer):
    freezer = ScriptedFreeze({7: [0], 12: [0]}, {10: [0]})
    make_trainer(freezer, max_epochs=2).fit(Classifier(mlp()))
    start, frozen = (freezer.timeline.cost.when_frozen(names).total for names in ([], ["net.0"]))
    saved = (start - frozen) * (5 + 2 * 8 + 3 * 8 + 5)  # the last of eight batches has five
    assert freezer.timeline.saved == pytest.approx(saved / (2 * 61 * start))


def test_the_history_of_a_thawed_layer_begins_anew():
    from smartfrz_lightning import MovementFreezeCallback

    class Thaws(MovementFreezeCallback):
        thaws = True

    net = mlp(norm=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    method = Thaws(window=4, snapshot_every_n_steps=1, every_n_train_steps=1)
    freezer = Freezer(net, optimizer, method)

    def step():
        with freezer.batch():
            net(torch.rand(4, 12)).sum().backward()
            optimizer.step()

    for _ in range(4):
        step()
    assert freezer.run.frozen == ["0", "4", "7"]  # nothing moved
    freezer.change(thaw_now=["4"])
    for _ in range(3):
        step()
        assert "4" not in freezer.run.frozen
    step()
    assert freezer.run.frozen[-1] == "4"
    freezer.end()


def test_a_second_freezer_of_a_model_begins_with_everything():
    """As where the cell of a notebook runs again."""
    net = mlp(norm=False)
    for _ in range(2):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        freezer = Freezer(net, optimizer, ScriptedFreeze({2: [0]}), 4, 4)
        for step in range(4):
            assert net[0].weight.requires_grad == (step < 2)
            with freezer.batch():
                optimizer.zero_grad()
                net(torch.randn(8, 12)).sum().backward()
                optimizer.step()
        assert freezer.run.frozen == ["0"]
    freezer.thaw()  # and without one more
    freezer.end()
    assert not freezer.run.frozen and all(parameter.requires_grad for parameter in net.parameters())


def test_a_model_that_is_another_by_then_starts_afresh(make_trainer, caplog):
    freezer, model = ScriptedFreeze({2: [0]}), Classifier(mlp())
    make_trainer(freezer, max_epochs=1).fit(model)
    model.net[9] = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 3))
    model.net[1] = nn.Identity()  # the norm of the frozen layer
    with caplog.at_level("INFO"):
        make_trainer(freezer, max_epochs=1).fit(model)
    assert "layers that an earlier fit froze train again: net.0." in caplog.text
    assert freezer.frozen == ["net.0"] and freezer.timeline.steps == 8
