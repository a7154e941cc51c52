"""The second look: a copy that trains everything beside the model, and what becomes of both."""

import gc
import pickle
import weakref

import pytest
import torch
from conftest import Classifier, mlp
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from test_probe import InOrder, Sure
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from smartfrz_lightning import SmartFreezeCallback
from smartfrz_lightning.callbacks import look_beside, smart
from smartfrz_lightning.engine import probed_start
from smartfrz_lightning.report.show import timeline_table

EPOCHS = 15  # of 8 batches: 120 steps, of which the look takes 12 to 24
HELD = ["net.0", "net.4"]


def looking(monkeypatch, release=None, **how):
    """A callback that holds a front, looks again, and then does what it saw, or what it is told."""
    monkeypatch.setattr(smart.StartPredictor, "load", lambda path: Sure(gentle=True))
    monkeypatch.setattr(probed_start, "untrained_end", lambda *_: 0)
    if release is not None:
        stays = (lambda sure, *_: 0) if release else (lambda sure, *_: len(sure))
        monkeypatch.setattr(look_beside, "how_much_stays", stays)
    return SmartFreezeCallback(**how)


def half_sure(monkeypatch, stays=None, **how):
    """A callback whose predictor is sure of the first layer and finds the second more likely harmless than not."""
    freezer = looking(monkeypatch, **how)
    freezer._start_predictor.forward = lambda inputs: torch.where(inputs[:, 0] < 0.4, 3.0, 5.9 - 7.5 * inputs[:, 0])
    if stays is not None:
        monkeypatch.setattr(look_beside, "how_much_stays", lambda sure, *_: stays)
    return freezer


def same(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.step


class Counting(InOrder):
    """Has buffers, lists and metrics of its own that its step moves."""

    def __init__(self, net, optimizer=None):
        super().__init__(net, optimizer)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("unsaved", torch.zeros(()), persistent=False)
        self.accuracy = MulticlassAccuracy(3)
        # Of the last layer's weights; it takes part in nothing.
        self.average = nn.Linear(16, 3).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        self.seen += len(batch[0])
        self.unsaved += 1
        loss = super().training_step(batch, batch_idx)
        self.accuracy(self(batch[0]), batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True)
        return {"loss": loss, "more": 1}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        assert set(outputs) == {"loss", "more"}
        self.average.weight.lerp_(self.net[9].weight.detach(), 0.1)

    def on_before_optimizer_step(self, optimizer):
        torch.rand(2)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}
TRAINERS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2, "max_epochs": 30},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_copy_that_is_dropped_leaves_no_trace(make_trainer, monkeypatch, trainer, optimizer):
    def fit(**how):
        torch.manual_seed(3)
        model, freezer = Counting(mlp(), OPTIMIZERS[optimizer]), looking(monkeypatch, release=False, **how)
        fitted = make_trainer(freezer, **{"max_epochs": EPOCHS, **TRAINERS[trainer]})
        fitted.fit(model)
        return model, freezer, fitted

    model, freezer, trained = fit()
    other, blind, without = fit(second_look=False)
    assert model.losses == other.losses and same(model, other) and model.seen == other.seen
    assert trained.callback_metrics["accuracy"] == without.callback_metrics["accuracy"]
    assert freezer.frozen == blind.frozen == HELD
    look = freezer.timeline.look
    assert (look.step, look.steps, look.stays, look.released) == (12, 12, 2, 0) and look.gain != 0 and look.error > 0
    assert blind.timeline.look is None
    dearer = freezer.timeline.spent.total - blind.timeline.spent.total
    assert dearer == pytest.approx(0.1 * freezer.timeline.full.total, rel=0.03)  # batches of five and of eight


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_copy_that_takes_over_is_the_model_released_before(make_trainer, monkeypatch, trainer, optimizer):
    """Thawed by hand where the look began, the same training has the same end."""

    class ByHand(SmartFreezeCallback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if self.timeline.steps == 12:
                self.thaw()

    def fit(make, **how):
        torch.manual_seed(3)
        net = mlp()
        model, freezer = Counting(net, OPTIMIZERS[optimizer]), looking(monkeypatch, release=True)
        freezer = freezer if make is None else make(**how)
        make_trainer(freezer, **{"max_epochs": EPOCHS, **TRAINERS[trainer]}).fit(model)
        return model, freezer

    model, freezer = fit(None)
    other, by_hand = fit(ByHand, second_look=False)
    assert freezer.timeline.look.released and freezer.frozen == by_hand.frozen == []
    assert same(model, other) and all(parameter.requires_grad for parameter in model.net.parameters())
    batches = 24 * TRAINERS[trainer].get("accumulate_grad_batches", 1)
    assert model.losses[batches:] == other.losses[batches:] and model.losses != other.losses
    assert [event.step for event in freezer.timeline.events] == [2, 2, 24, 24]


def test_a_front_that_holds_the_network_back_is_released(make_trainer, monkeypatch):
    """The first layer lets nothing through of what the classes depend on."""
    torch.manual_seed(0)
    poor = nn.Linear(12, 12)
    nn.init.zeros_(poor.weight[:, :2])
    nn.init.zeros_(poor.bias)
    net = nn.Sequential(poor, nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    freezer = looking(monkeypatch)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(net))
    look = freezer.timeline.look
    assert look.released and look.gain > 0 and look.error > 0 and not freezer.frozen


def test_a_front_that_is_better_left_alone_stays(make_trainer, monkeypatch):
    """It passes on what the classes depend on; at this rate it would lose it."""
    torch.manual_seed(0)
    good = nn.Linear(12, 12)
    nn.init.eye_(good.weight)
    good.weight.data *= 3
    net = nn.Sequential(good, nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    freezer = looking(monkeypatch)
    make_trainer(freezer, max_epochs=50).fit(InOrder(net, lambda p: torch.optim.SGD(p, lr=0.5)))
    look = freezer.timeline.look
    assert not look.released and look.gain < -look.error < 0 and freezer.frozen


def test_a_grad_scaler_of_its_own(make_trainer, monkeypatch):
    def fit(**how):
        torch.manual_seed(3)
        model, freezer = InOrder(mlp(norm=False)), looking(monkeypatch, release=False, **how)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        make_trainer(freezer, max_epochs=EPOCHS, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(model)
        return model, freezer

    (model, freezer), (other, _) = fit(), fit(second_look=False)
    assert freezer.timeline.look and model.losses == other.losses and same(model, other)


@pytest.mark.parametrize("stays", [0, 1, 2])
def test_resumed_in_the_middle_of_a_look(make_trainer, monkeypatch, tmp_path, stays):
    def fit(*callbacks, ckpt_path=None):
        torch.manual_seed(5)
        net = mlp()
        net[3].p = 0.0
        model, freezer = InOrder(net, OPTIMIZERS["adamw"]), half_sure(monkeypatch, stays)
        made = make_trainer(freezer, *callbacks, max_epochs=EPOCHS, enable_checkpointing=True)
        made.fit(model, ckpt_path=ckpt_path)
        return model, freezer

    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole, freezer = fit(every)
    for step in (11, 12, 19, 23, 24):
        again, resumed = fit(ckpt_path=str(tmp_path / f"step={step}.ckpt"))
        assert same(again, whole), step
        assert resumed.timeline.look == freezer.timeline.look
        assert again.losses == whole.losses[step:]


def test_a_copy_moves_no_schedule_and_hands_over_nothing_that_it_did_not_move(make_trainer, monkeypatch):
    class Scheduled(Counting):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            self.register_buffer("epochs", torch.zeros(()))
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)]

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.lr_schedulers().step()

        def on_train_epoch_end(self):
            self.epochs += 1

    model, freezer = Scheduled(mlp()), looking(monkeypatch, release=True)
    trainer = make_trainer(freezer, max_epochs=EPOCHS)
    trainer.fit(model)
    assert freezer.timeline.look.released and model.epochs == EPOCHS
    steps = 120 + EPOCHS  # and Lightning's own, at the end of each epoch
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.99**steps)


def test_batches_without_a_loss_under_a_grad_scaler(make_trainer, monkeypatch):
    class Skips(InOrder):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 5 else super().training_step(batch, batch_idx)

    freezer = looking(monkeypatch, release=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    make_trainer(freezer, max_epochs=EPOCHS, plugins=[plugin]).fit(Skips(mlp(norm=False)))
    assert freezer.timeline.look is not None


def test_the_callback_can_be_pickled_meanwhile(make_trainer, monkeypatch):
    class Pickles(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 16:
                pickle.loads(pickle.dumps(freezer))

    freezer = looking(monkeypatch, release=True)
    make_trainer(freezer, Pickles(), max_epochs=EPOCHS).fit(InOrder(mlp()))


def test_the_same_dropout_in_both(make_trainer, monkeypatch):
    """With nothing in the front to release, the copy is the model, whatever is drawn at random."""

    class Drawing(InOrder):
        def training_step(self, batch, batch_idx):
            noise = torch.randn(len(batch[0]), 12)
            return super().training_step((batch[0] + noise, batch[1]), batch_idx)

    freezer = looking(monkeypatch, release=False)
    model = Drawing(mlp(norm=False), lambda p: torch.optim.SGD(p, lr=0.0))
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
    assert freezer.timeline.look.gain == 0.0


def test_none_where_a_share_is_to_be_saved_in_a_short_run_or_where_little_or_nothing_is_held(make_trainer, monkeypatch):
    def looked(net=None, epochs=EPOCHS, **how):
        freezer = looking(monkeypatch, release=True, **how)
        make_trainer(freezer, max_epochs=epochs).fit(InOrder(net or mlp()))
        return freezer.timeline.look, freezer.frozen

    assert looked(save=0.3) == (None, HELD)
    assert looked(epochs=12, probe_steps=2) == (None, HELD)  # 96 steps
    monkeypatch.setattr(Sure, "forward", lambda self, inputs: torch.where(inputs[:, 0] < 0.4, 3.0, -3.0))

    def small():
        back = nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 3)
        return nn.Sequential(nn.Linear(12, 4), nn.ReLU(), *back)

    assert looked(small()) == (None, ["net.0"])  # it costs a tenth of a run, and the front saves less
    monkeypatch.setattr(Sure, "forward", lambda self, inputs: torch.where(inputs[:, 0] < 0.4, 1.0, -3.0))
    with pytest.warns(UserWarning, match="1 layers that were held train again: the probe says less than 0.8"):
        assert looked(small()) == (None, [])  # which is not likely enough without
    monkeypatch.setattr(Sure, "forward", lambda self, inputs: torch.full((len(inputs),), -3.0))
    assert looked() == (None, [])
    with pytest.raises(ValueError, match="second_look=False belongs to start='probe'"):
        SmartFreezeCallback(start="none", second_look=False)


def test_a_front_that_somebody_thaws_meanwhile_is_looked_at_no_longer(make_trainer, monkeypatch):
    class Thaws(InOrder):
        def on_train_batch_start(self, batch, batch_idx):
            if self.trainer.global_step == 16:
                freezer.thaw()

    freezer = looking(monkeypatch, release=True)
    make_trainer(freezer, max_epochs=EPOCHS).fit(Thaws(mlp()))
    assert freezer.timeline.look is None and not freezer.frozen


def test_a_fit_that_ends_within_the_look_lets_the_copy_go(make_trainer, monkeypatch):
    made = []
    original = look_beside.SecondLook.__init__

    def noted(self, *args):
        original(self, *args)
        made.append(weakref.ref(self.model))

    monkeypatch.setattr(look_beside.SecondLook, "__init__", noted)
    freezer, model = looking(monkeypatch), Classifier(mlp())
    trainer = make_trainer(freezer, StopAt(16), max_epochs=EPOCHS)
    trainer.fit(model)
    gc.collect()
    assert trainer.global_step == 16 and len(made) == 1 and made[0]() is None
    assert freezer.frozen == HELD and freezer.timeline.look is None
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)  # and another fit goes well
    assert freezer.timeline.steps == 16 + 120


def test_the_report_says_what_the_look_saw(make_trainer, monkeypatch):
    freezer = looking(monkeypatch, release=True)
    make_trainer(freezer, max_epochs=EPOCHS).fit(Classifier(mlp()))
    said = str(timeline_table(freezer.timeline).renderables[-1])
    assert "second look, steps 12 to 24: a copy that trained everything had a loss" in said and "took over" in said
    assert freezer.timeline.saved < 0 and "without this callback" in said
    assert "forward pass of the held front" not in said  # there is none any more
