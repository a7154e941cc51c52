"""How much is held until the second look, and how much stays after it."""

import math

import pytest
import torch
from conftest import Vectors, mlp
from lightning.pytorch.callbacks import ModelCheckpoint
from test_probe import InOrder
from test_second_look import EPOCHS, HELD, OPTIMIZERS, Counting, half_sure, looking, same
from torch import nn

from smartfrz_lightning import SmartFreezeCallback
from smartfrz_lightning.callbacks import smart
from smartfrz_lightning.engine.second_look import SecondLook, how_much_stays
from smartfrz_lightning.layers import find_layers
from smartfrz_lightning.predictor.start_inputs import INPUTS
from smartfrz_lightning.report.show import timeline_table


def test_a_part_of_the_front_stays_and_the_model_goes_on_without_the_copy(make_trainer, monkeypatch):
    class ByHand(SmartFreezeCallback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if self.timeline.steps == 24:
                self._engine.change(thaw_now=["net.4"])

    def fit(freezer):
        torch.manual_seed(3)
        model = Counting(mlp(), OPTIMIZERS["adamw"])
        make_trainer(freezer, max_epochs=EPOCHS).fit(model)
        return model, freezer

    model, freezer = fit(half_sure(monkeypatch, stays=1))
    other, by_hand = fit(ByHand(second_look=False, threshold=0.5))
    assert by_hand.timeline.start.held == HELD and freezer.frozen == by_hand.frozen == ["net.0"]
    assert same(model, other) and model.losses == other.losses
    look = freezer.timeline.look
    assert (look.stays, look.released) == (1, 1)
    said = str(timeline_table(freezer.timeline).renderables[-1])
    assert "the first 1 of 2 layers stay" in said


def test_as_much_is_held_as_a_look_can_check(make_trainer, monkeypatch):
    def held(**how):
        freezer = half_sure(monkeypatch, **how)
        make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(mlp()))
        return freezer.timeline.start.held

    assert held() == HELD
    assert held(second_look=False) == held(threshold=0.8) == HELD[:1]
    assert held(threshold=0.55, second_look=False) == HELD and held(threshold=0.97) == []
    monkeypatch.setattr(smart, "FORESEEN", 100)  # of a long run a look in its beginning says too little
    assert held() == HELD[:1] and held(threshold=0.55) == HELD


def test_how_much_stays_goes_by_the_look_and_by_the_probe(make_trainer, monkeypatch):
    inf, nan = float("inf"), float("nan")
    for gain, left in ((-0.2, HELD), (-0.1, HELD[:1]), (0.0, []), (-inf, HELD), (inf, []), (nan, HELD[:1])):
        monkeypatch.setattr(SecondLook, "gain", gain)
        monkeypatch.setattr(SecondLook, "error", 0.1)
        freezer = half_sure(monkeypatch)
        make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(mlp()))
        assert freezer.frozen == left
    freezer = half_sure(monkeypatch, threshold=0.55)  # the user's own, for what nobody looks at too
    monkeypatch.setattr(SecondLook, "gain", -0.1)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(mlp()))
    assert freezer.frozen == HELD


def test_a_copy_that_breaks_down_does_not_take_over(make_trainer, monkeypatch):
    class Fragile(InOrder):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if self.trainer.lightning_module is self else loss * float("inf")

    model, freezer = Fragile(mlp()), half_sure(monkeypatch)
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
    assert freezer.frozen == HELD and all(tensor.isfinite().all() for tensor in model.parameters())


def test_a_difference_that_is_next_to_nothing_tells_nothing():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.rand(8, 4)
    look = SecondLook(net, torch.optim.SGD(net.parameters(), 0.1), find_layers(net, x)[:1], steps=8)
    for step in range(8):
        look.note(torch.tensor(2.0), torch.tensor(2.005 + 0.0001 * step), stepped=True)
    assert look.gain == pytest.approx(-0.00555, rel=1e-3) and look.error == pytest.approx(0.02)
    assert how_much_stays([0.9], look.gain, look.error) == 0


def test_what_an_earlier_fit_has_looked_at_stays(make_trainer, monkeypatch):
    freezer, model = half_sure(monkeypatch, stays=2), InOrder(mlp())
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
    assert freezer.frozen == HELD
    make_trainer(freezer, max_epochs=2).fit(model)  # too short for another look
    assert freezer.frozen == HELD


def test_resumed_without_a_look_what_is_not_that_likely_trains_again(make_trainer, monkeypatch, tmp_path):
    def fit(*callbacks, ckpt_path=None, **how):
        freezer = half_sure(monkeypatch, **how)
        made = make_trainer(freezer, *callbacks, max_epochs=EPOCHS, enable_checkpointing=True)
        made.fit(InOrder(mlp()), ckpt_path=ckpt_path)
        return freezer

    fit(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1), stays=2)
    for step, left in ((8, HELD[:1]), (16, HELD[:1]), (24, HELD)):  # before the look, in its middle, after it
        resumed = fit(ckpt_path=str(tmp_path / f"step={step}.ckpt"), second_look=False)
        assert resumed.frozen == left, step


@pytest.mark.parametrize("manual", [True, False])
def test_where_nobody_looks_inputs_of_another_kind_count(make_trainer, monkeypatch, manual):
    def held(far, max_epochs=EPOCHS, **how):
        class Model(InOrder):
            def training_step(self, batch, batch_idx):
                loss = super().training_step(batch, batch_idx)
                if manual:
                    optimizer = self.optimizers()
                    self.manual_backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                return loss

        model, freezer = Model(mlp()), looking(monkeypatch, **how)
        freezer._start_predictor.forward = lambda inputs: 3 - 6 * (inputs[:, INPUTS.index("shift")] > math.log(0.15))
        model.automatic_optimization = not manual
        with torch.no_grad():  # the statistics of the inputs themselves
            x = torch.stack([x for x, _ in Vectors()])
            y = model.net[0](x)
            model.net[1].running_mean.copy_(y.mean(0) + 3 * far)
            model.net[1].running_var.copy_(y.var(0))
        make_trainer(freezer, max_epochs=max_epochs).fit(model)
        return len(freezer.timeline.start.held)

    assert held(far=False) == held(far=True, second_look=False) == 3
    assert held(far=True) == (0 if manual else 3)
    assert held(far=True, max_epochs=12, probe_steps=2) == 0  # too short for a look
