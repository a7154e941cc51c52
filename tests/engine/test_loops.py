"""The engine in a hand-written loop and under Lightning Fabric: the same layers at the same steps as the callback."""

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import Classifier, Vectors, Within, mlp, sgd
from staging import ANYWAY, HALF_SURE, NEVER, ONE_LAYER, smart, trained
from torch import nn
from torch.utils.data import DataLoader

from smartfrz_lightning import (
    AttentionFreezeCallback,
    AutoFreezeCallback,
    GradientNormFreezeCallback,
    HistoryRecorder,
    IntervalFreezeCallback,
    LinearFreezeCallback,
    MovementFreezeCallback,
    SmartFreezeCallback,
    StaticFreezeCallback,
)
from smartfrz_lightning.engine import Freezer
from smartfrz_lightning.stages import StartStage

EPOCHS = 4

METHODS = {
    "smart": lambda: AttentionFreezeCallback(
        threshold=0.2, front_only=True, every_n_train_steps=5, snapshot_every_n_steps=1
    ),
    "smart by epoch": lambda: AttentionFreezeCallback(threshold=0.3, front_only=False),
    "smart, probe": lambda: SmartFreezeCallback(StartStage(ONE_LAYER, probe_steps=5), verify=False, save=0.3),
    "movement": lambda: MovementFreezeCallback(threshold=0.12, window=8, snapshot_every_n_steps=1),
    "auto": lambda: AutoFreezeCallback(percentile=70),
    "gradient norm": lambda: GradientNormFreezeCallback(alpha=0.5),
    "linear": lambda: LinearFreezeCallback(t_0=0.3),
    "interval": lambda: IntervalFreezeCallback(flops_reduction=0.2),
    "static": lambda: StaticFreezeCallback(layers=2),
}


def what(timeline):
    return [(event.layer, event.step, round(event.epoch, 9), event.confidence) for event in timeline.events]


def in_a_loop(method, by_fabric=False):
    """What a user writes, also under Fabric, which wraps model, optimizer and loader."""
    torch.manual_seed(1)
    model, loader = Within(trained(mlp())), DataLoader(Vectors(72), 8)
    torch.manual_seed(1)
    optimizer, backward = sgd(model.parameters()), torch.Tensor.backward
    if by_fabric:
        fabric = Fabric(accelerator="cpu", devices=1)
        model, optimizer = fabric.setup(model, optimizer)
        loader, backward = fabric.setup_dataloaders(loader), fabric.backward
    freezer = Freezer(model, optimizer, method, batches_per_epoch=len(loader), total_batches=EPOCHS * len(loader))
    for epoch in range(EPOCHS):
        model.train()
        for x, y in loader:
            with freezer.batch((x, y)):
                optimizer.zero_grad()
                backward(nn.functional.cross_entropy(model(x), y))
                optimizer.step()
        freezer.end_epoch(last=epoch == EPOCHS - 1)
    freezer.end()
    return model.module if by_fabric else model, freezer.timeline


@pytest.mark.parametrize("name", METHODS)
def test_the_same_decisions_as_the_callback(make_trainer, name):
    torch.manual_seed(1)
    model, callback = Classifier(trained(mlp()), size=72), METHODS[name]()
    torch.manual_seed(1)
    make_trainer(callback, max_epochs=EPOCHS, limit_val_batches=0).fit(model)
    assert callback.frozen
    for by_fabric in (False, True):
        model_of_loop, timeline = in_a_loop(METHODS[name](), by_fabric)
        assert what(timeline) == what(callback.timeline)
        assert timeline.saved == callback.timeline.saved > 0
        assert timeline.layers == callback.layers
        torch.testing.assert_close(model.state_dict(), model_of_loop.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("precision", [None, "32-true", "bf16-mixed"], ids=["by hand", "by Fabric", "by Fabric, bf16"])
@pytest.mark.parametrize("verdict", [ANYWAY, NEVER], ids=["stays", "adopted"])
def test_a_loop_that_gives_its_training_step_can_verify(make_trainer, verdict, precision):
    model, callback = Classifier(trained(mlp()), size=72), smart(verdict=verdict)
    torch.manual_seed(1)
    make_trainer(callback, max_epochs=15, limit_val_batches=0, precision=precision).fit(model)
    assert "Trial" in "\n".join(callback.timeline.notes)

    own, loader = Within(trained(mlp())), DataLoader(Vectors(72), 8)
    torch.manual_seed(1)
    optimizer, backward = sgd(own.parameters()), torch.Tensor.backward
    if precision is not None:
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        own, optimizer = fabric.setup(own, optimizer)
        loader, backward = fabric.setup_dataloaders(loader), fabric.backward

    def training_step(batch):
        return nn.functional.cross_entropy(own(batch[0]), batch[1])

    how = {"training_step": training_step, "backward": backward}
    freezer = Freezer(own, optimizer, smart(verdict=verdict), len(loader), 15 * len(loader), **how)
    for epoch in range(15):
        for batch in loader:
            with freezer.batch(batch):
                optimizer.zero_grad()
                backward(freezer.training_step(batch))
                optimizer.step()
        freezer.end_epoch(last=epoch == 14)
    freezer.end()
    assert freezer.timeline.notes == callback.timeline.notes and what(freezer.timeline) == what(callback.timeline)
    plain = own.module if precision else own
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_a_batch_that_the_loop_skips_does_not_end_the_trial():
    net, batches = trained(mlp()), [*DataLoader(Vectors(64), 8)]
    optimizer = sgd(net.parameters())
    how = {"training_step": lambda batch: nn.functional.cross_entropy(net(batch[0]), batch[1])}
    freezer = Freezer(net, optimizer, smart(verdict=ANYWAY), 8, 120, **how)
    for number in range(120):
        with freezer.batch(batches[number % 8]):
            if number == 16:
                continue
            optimizer.zero_grad()
            freezer.training_step(batches[number % 8]).backward()
            optimizer.step()
    freezer.end()
    assert "Trial, steps 12 to 24" in "\n".join(freezer.timeline.notes)


def test_a_trial_ends_with_the_reason_where_the_optimizer_steps_after_the_batch():
    net, batches = trained(mlp()), [*DataLoader(Vectors(64), 8)]
    optimizer = sgd(net.parameters())
    how = {"training_step": lambda batch: nn.functional.cross_entropy(net(batch[0]), batch[1])}
    freezer = Freezer(net, optimizer, smart(HALF_SURE), 8, 120, **how)
    for number in range(30):
        with freezer.batch(batches[number % 8]):
            optimizer.zero_grad()
            freezer.training_step(batches[number % 8]).backward()
        optimizer.step()
    freezer.end()
    assert "or the optimizer stepped after the batch" in "\n".join(freezer.timeline.notes)


class NeedsClosure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


def test_no_trial_where_the_optimizer_needs_a_closure():
    net = mlp()
    for kind, why in ((torch.optim.SGD, ""), (NeedsClosure, "the optimizer's step() needs a closure")):
        optimizer = kind(net.parameters(), 0.1)
        torch.optim.lr_scheduler.LinearLR(optimizer)  # wraps step()
        freezer = Freezer(net, optimizer, smart(), 9, 90, training_step=net)
        assert freezer.run.cannot_verify == why


def test_no_trial_where_fabric_scales_gradients():
    net = mlp()
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu"))
    model, optimizer = fabric.setup(net, sgd(net.parameters()))
    freezer = Freezer(model, optimizer, smart(), 9, 90, training_step=model, backward=fabric.backward)
    assert "16-mixed" in freezer.run.cannot_verify


def test_no_trial_where_the_optimizer_trains_a_criterion_too():
    net, criterion = mlp(), nn.Linear(3, 3)
    optimizer = sgd([*net.parameters(), *criterion.parameters()])
    freezer = Freezer(net, optimizer, smart(), 9, 90, training_step=lambda batch: criterion(net(batch)).sum())
    assert "parameters that the model does not have" in freezer.run.cannot_verify


def test_a_loop_without_a_training_step_says_what_follows():
    own, loader = Within(trained(mlp())), DataLoader(Vectors(72), 8)
    optimizer = sgd(own.parameters())
    freezer = Freezer(own, optimizer, SmartFreezeCallback(), len(loader), 15 * len(loader))
    for batch in loader:
        with freezer.batch(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(own(batch[0]), batch[1]).backward()
            optimizer.step()
    freezer.end()
    assert "no training_step to repeat" in freezer.timeline.notes[0] and "at least 0.8" in freezer.timeline.notes[0]
    with pytest.raises(ValueError, match="training_step: give Freezer"):
        freezer.training_step(batch)


METHODS_OF_COST = {
    "interval": lambda: IntervalFreezeCallback(flops_reduction=0.2),
    "start": lambda: SmartFreezeCallback(StartStage(ONE_LAYER, probe_steps=3), verify=False, later=False),
}


@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize("name", METHODS_OF_COST)
def test_a_backward_pass_that_is_not_noticed_is_said(name, tells):
    said, model = [], trained(mlp())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    method = METHODS_OF_COST[name]()
    freezer = Freezer(model, optimizer, method, batches_per_epoch=8, total_batches=24, say=said.append)
    for batch in list(DataLoader(Vectors(64), 8)) * 3:
        with freezer.batch(batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            if tells:
                freezer.before_backward(loss)
            torch.autograd.backward(loss)
            optimizer.step()
    assert bool(freezer.run.frozen) == tells
    assert any(text.startswith("No backward pass was seen") for text in said) != tells
    assert any("the FLOPs of a step are not known" in text for text in said) == (name == "start" and not tells)


def test_the_recorder_needs_a_trainer(tmp_path):
    model = mlp()
    torch.save(model.state_dict(), tmp_path / "end.ckpt")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    freezer = Freezer(model, optimizer, HistoryRecorder(str(tmp_path / "end.ckpt")), total_batches=8)
    with pytest.raises(MisconfigurationException, match="use a Trainer"):
        freezer.start()


def batch_by_batch(total, steps):
    """A loop with the default's start stage, in which an optimizer steps in these of the batches."""
    model, loader = trained(mlp()), [Vectors(72)[:8]] * total
    optimizer = sgd(model.parameters())
    method = SmartFreezeCallback(StartStage(ONE_LAYER), verify=False, later=False)
    freezer = Freezer(model, optimizer, method, total, total)
    for number, (x, y) in enumerate(loader):
        with freezer.batch((x, y)):
            nn.functional.cross_entropy(model(x), y).backward()
            if steps(number):
                optimizer.step()
                optimizer.zero_grad()
    freezer.end()
    return freezer


def test_skipped_first_batches_do_not_shorten_the_probe():
    freezer = batch_by_batch(120, lambda number: number >= 2)
    assert freezer.run.frozen == ["0"] and [event.step for event in freezer.timeline.events] == [2]


def test_a_run_that_accumulates_gradients_is_as_long_as_its_steps():
    freezer = batch_by_batch(120, lambda number: number % 4 == 3)
    assert not freezer.run.frozen
    assert "needs a run of 100 steps, and this one has 30;" in "\n".join(freezer.timeline.notes)
