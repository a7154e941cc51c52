"""What the engine must not do to a user's training, and must notice of it."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from models import Classifier, mlp
from scripted import FreezeNext, ScriptedFreeze, States
from staging import notes, smart, trained
from torch import nn

from smartfrz_lightning import (
    AttentionFreezeCallback,
    AutoFreezeCallback,
    Freezer,
    GradientNormFreezeCallback,
    StaticFreezeCallback,
)
from smartfrz_lightning.stages import LaterStage


class Modes(Callback):
    """In which mode every module was while the batch ran."""

    def __init__(self):
        self.training = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.training.append({name: module.training for name, module in pl_module.named_modules()})


class RunningMean(Classifier):
    """Keeps a running mean of its inputs as a buffer of the LightningModule itself."""

    def __init__(self, net, start=0.0):
        super().__init__(net)
        self.register_buffer("mean", torch.full((12,), start))

    def training_step(self, batch, batch_idx):
        self.mean.lerp_(batch[0].mean(0), 0.1)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("start", [0.0, float("nan")])
def test_a_buffer_that_moves_on_the_lightning_module_puts_nothing_in_eval_mode(make_trainer, start):
    model, freezer, modes = RunningMean(mlp(), start), ScriptedFreeze({4: [0]}), Modes()
    make_trainer(freezer, modes, max_epochs=2, limit_val_batches=0).fit(model)
    assert freezer.frozen == ["net.0"] and freezer.layers[0].stateful == ("net.1",)
    # The net has the BatchNorm net.1 of the frozen layer, a Dropout, and the BatchNorm of a layer that trains.
    assert [name for name, training in modes.training[-1].items() if not training] == ["net.1"]


@pytest.mark.parametrize("every_step", [False, True], ids=["unfreeze", "the loop of a GAN"])
def test_a_layer_that_the_users_code_thaws_is_taken_over_and_said(make_trainer, every_step):
    class Thaws(Classifier):
        def training_step(self, batch, batch_idx):
            if every_step or self.global_step == 9:
                self.net.requires_grad_(True)
            return super().training_step(batch, batch_idx)

    model, freezer, states = Thaws(mlp()), ScriptedFreeze({4: [0]}), States()
    with pytest.warns(UserWarning, match=r"requires_grad=True on 1 layers that ScriptedFreeze had frozen \(net.0\)"):
        make_trainer(freezer, states, max_epochs=2, limit_val_batches=0).fit(model)
    noticed = 5 if every_step else 10
    events = [(event.kind, event.step) for event in freezer.timeline.events]
    assert events == [("freeze", 4), ("thaw", noticed)] and freezer.layers[0].always_trains == "thawed"
    for step in range(1, 16):  # it is held for the step in which that is noticed, and trains on after it
        before, after = (state["net.0.weight"] for state in states.states[step - 1 : step + 1])
        assert torch.equal(before, after) == (4 <= step < noticed), step
    frozen, samples = freezer.timeline.cost.relative(["net.0"]), 8 if every_step else 5 * 8 + 5
    assert freezer.timeline.saved == pytest.approx((1 - frozen) * samples / (2 * 61))


def test_a_state_that_is_loaded_after_a_batch_that_broke_off_holds_nothing_of_it():
    net = mlp(norm=False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    freezer = Freezer(net, optimizer, ScriptedFreeze({2: [0]}), 8, 8)

    def step(breaks=False):
        with freezer.batch():
            optimizer.zero_grad()
            net(torch.rand(4, 12)).sum().backward()
            optimizer.step()
            if breaks:
                raise RuntimeError("out of memory")

    for _ in range(3):
        step()
    state = freezer.state_dict()
    net[0].requires_grad_(True)
    with pytest.raises(RuntimeError, match="out of memory"):
        step(breaks=True)
    freezer.load_state_dict(state)
    step()
    assert freezer.run.frozen == ["0"] and not freezer.run.layers[0].always_trains and freezer.run.steps == 4


class TwoStems(nn.Module):
    """Two inputs in turn, each with a stem of its own, and a trunk behind both."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.stems = nn.ModuleList([nn.Linear(12, 8), nn.Linear(12, 8)])
        self.turn = 0

    def forward(self, x):
        x = self.stems[self.turn % 2](x)
        self.turn += self.training
        return self.head(self.trunk(x).relu())


def test_a_layer_that_the_first_batch_did_not_use_always_trains(make_trainer):
    freezer, model = FreezeNext(every_n_train_steps=4), Classifier(TwoStems())
    before = model.net.stems[1].weight.detach().clone()
    make_trainer(freezer, max_epochs=2, limit_val_batches=0).fit(model)
    assert {layer.name: layer.always_trains for layer in freezer.layers} == {
        "net.stems.0": "",
        "net.trunk": "",
        "net.head": "output",
        "net.stems.1": "unused",
    }
    assert freezer.frozen == ["net.stems.0", "net.trunk"]
    assert model.net.stems[1].weight.requires_grad and not model.net.stems[1].weight.equal(before)


@pytest.mark.parametrize("automatic", [True, False])
def test_a_first_step_without_a_loss_shows_no_layers(make_trainer, automatic):
    class Skips(Classifier):
        def __init__(self):
            super().__init__(mlp())
            self.automatic_optimization = automatic

        def training_step(self, batch, batch_idx):
            if batch_idx == 0:
                self.net[:5](batch[0])  # ends in a layer in the middle
                return None
            loss = super().training_step(batch, batch_idx)
            if not automatic:
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

    freezer = ScriptedFreeze({6: [0, 1, 2, 3]})
    make_trainer(freezer, max_epochs=2, limit_val_batches=0).fit(Skips())
    assert [layer.always_trains for layer in freezer.layers] == ["", "", "", "output"]
    assert freezer.frozen == ["net.0", "net.4", "net.7"]


@pytest.mark.parametrize(("before", "after"), [([], ["net.4"]), (["net.4"], [])])
def test_what_is_excluded_on_resume_counts(make_trainer, tmp_path, before, after):
    saved = ModelCheckpoint(tmp_path, "half", save_on_train_epoch_end=True)
    first = ScriptedFreeze({4: [0, 1]}, exclude=before)
    make_trainer(first, saved, max_epochs=1, enable_checkpointing=True).fit(Classifier(mlp()))
    assert ("net.4" in first.frozen) == (not before)
    model, second = Classifier(mlp()), ScriptedFreeze({12: [1, 2]}, exclude=after)
    make_trainer(second, max_epochs=2).fit(model, ckpt_path=tmp_path / "half.ckpt")
    assert ("net.4" in second.frozen) == (not after) and "net.7" in second.frozen
    assert model.net[4].weight.requires_grad == bool(after) and model.net[5].training == bool(after)


@pytest.mark.parametrize("method", [AutoFreezeCallback, GradientNormFreezeCallback])
def test_a_gradscaler_that_overflows_costs_no_evaluation(make_trainer, method):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, growth_interval=3)
    freezer = method(every_n_train_steps=4)
    trainer = make_trainer(freezer, plugins=MixedPrecision("16-mixed", "cpu", scaler), max_epochs=8)
    trainer.fit(Classifier(mlp(norm=False)))
    assert scaler.get_scale() < 2.0**60, "no step overflowed"
    assert freezer.frozen
    state = freezer.state_dict()["method"]
    assert all(torch.isfinite(tensor).all() for tensor in state["gradients"].values())
    assert all(0 <= norm < float("inf") for norm in state.get("norms", {}).values())


def test_a_model_with_a_sparse_buffer_trains_without_a_trial(make_trainer):
    class Neighbours(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("adjacency", (torch.eye(12) + torch.eye(12).roll(1, 0)).to_sparse())

        def forward(self, x):
            return torch.sparse.mm(self.adjacency, x.T).T

    freezer = smart()
    make_trainer(freezer, max_epochs=15).fit(Classifier(nn.Sequential(Neighbours(), *trained(mlp()))))
    assert freezer.frozen and "cannot be copied" in notes(freezer)


def test_lazy_modules_that_no_sanity_check_has_called_are_refused(make_trainer):
    net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match="lazy modules"):
        make_trainer(StaticFreezeCallback(1)).fit(Classifier(net))
    net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3))
    freezer = StaticFreezeCallback(1)
    make_trainer(freezer, num_sanity_val_steps=1).fit(Classifier(net))
    assert freezer.frozen == ["net.0"]


@pytest.mark.parametrize("freezer", [smart(later=LaterStage()), AttentionFreezeCallback()], ids=["smart", "attention"])
def test_an_optimizer_that_keeps_its_rates_to_itself(make_trainer, freezer):
    adafactor = pytest.importorskip("transformers").Adafactor
    model = Classifier(trained(mlp()), lambda p: adafactor(p, lr=None, relative_step=True))
    make_trainer(freezer, max_epochs=15).fit(model)
    assert freezer.timeline.steps == 120 and freezer.timeline.layers
