"""Nothing is held of what was never trained, however harmless the predictor thinks it."""

import pytest
import torch
from conftest import Classifier, mlp
from test_probe import STEPS, Lora, Sure
from torch import nn

from smartfrz_lightning import SmartFreezeCallback
from smartfrz_lightning.callbacks import smart
from smartfrz_lightning.report.show import start_line
from smartfrz_lightning.report.timeline import Timeline


@pytest.fixture(autouse=True)
def sure(monkeypatch):
    monkeypatch.setattr(smart.StartPredictor, "load", lambda path: Sure(gentle=True))


def trained(linear):
    """With weights that are more than random numbers."""
    with torch.no_grad():
        linear.weight += 0.3 * torch.randn(len(linear.weight), 1) * torch.randn(1, linear.in_features)
    return linear


def adapted(base):
    """A pretrained layer as LoRA leaves it: the product beside it is zero at first."""
    layer = Lora(trained(base))
    nn.init.zeros_(layer.up.weight)
    return layer


def test_from_scratch_nothing_is_held(make_trainer):
    freezer, model = SmartFreezeCallback(probe_steps=STEPS), Classifier(mlp())
    make_trainer(freezer).fit(model)
    start = freezer.timeline.start
    assert start.untrained == list(start.sure) == ["net.0", "net.4", "net.7"] and max(start.sure.values()) > 0.9
    assert not start.held and not freezer.timeline.events
    assert start_line(start).endswith("nothing held, as no layer that trains has been trained before")


def test_who_asks_for_a_saving_gets_it(make_trainer):
    freezer = SmartFreezeCallback(probe_steps=STEPS, save=0.1)
    make_trainer(freezer).fit(Classifier(mlp()))
    start = freezer.timeline.start
    assert start.held and freezer.frozen and start.untrained == list(start.sure)
    random, rest = len(start.held), len(start.sure) - len(start.held)
    assert start_line(start).partition("; ")[2] == (
        f"{random} of these are random, as they were made; {rest} before the head are new, and train"
    )


def test_new_layers_behind_pretrained_ones_train(make_trainer):
    net = mlp()
    trained(net[0])
    trained(net[4])
    freezer = SmartFreezeCallback(probe_steps=STEPS, second_look=False)
    freezer._start_predictor.forward = lambda inputs: torch.full((len(inputs),), 3.0)  # sure of all
    make_trainer(freezer).fit(Classifier(net))
    assert freezer.timeline.start.untrained == ["net.7"] and freezer.frozen == ["net.0", "net.4"]
    assert start_line(freezer.timeline.start).endswith("; 1 before the head are new, and train")


def test_adapters_leave_a_pretrained_network_as_it_was(make_trainer):
    net = mlp(norm=False)
    for number in (0, 4, 7):
        net[number] = adapted(net[number])
    freezer = SmartFreezeCallback(probe_steps=STEPS, second_look=False)
    freezer._start_predictor.forward = lambda inputs: torch.full((len(inputs),), 3.0)  # sure of all
    make_trainer(freezer).fit(Classifier(net))
    assert freezer.timeline.start.untrained == ["net.7.up"]
    assert freezer.frozen == ["net.0.down", "net.0.up", "net.4.down", "net.4.up", "net.7.down"]


def test_an_old_timeline_and_what_is_said_of_a_run_in_which_nothing_was_held(make_trainer, capsys):
    freezer = SmartFreezeCallback(probe_steps=STEPS)
    make_trainer(freezer).fit(Classifier(mlp()))
    said = " ".join(capsys.readouterr().out.split())
    assert "the run was one without this callback" in said and "every_n_train_steps" not in said
    state = freezer.timeline.state_dict()
    assert Timeline.from_state_dict(state).start == freezer.timeline.start
    del state["start"]["untrained"]
    assert Timeline.from_state_dict(state).start.untrained == []
