"""In a long run the front that was held trains as well, after two fifths."""

from itertools import cycle

import pytest
import torch
from conftest import Vectors, mlp
from lightning.pytorch.callbacks import ModelCheckpoint
from test_probe import InOrder
from test_second_look import EPOCHS, HELD, OPTIMIZERS, Counting, StopAt, looking, same
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from smartfrz_lightning import Freezer, SmartFreezeCallback
from smartfrz_lightning.callbacks import look_beside, smart
from smartfrz_lightning.engine import second_look
from smartfrz_lightning.report.show import timeline_table

UNTIL = 48  # two fifths of 120 steps


@pytest.fixture(autouse=True)
def long_runs(monkeypatch):
    monkeypatch.setattr(second_look, "FORESEEN", 110)


class ByHand(SmartFreezeCallback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.timeline.steps == UNTIL:
            self._engine.change(thaw_now=HELD)


def test_it_trains_as_if_thawed_by_hand(make_trainer, monkeypatch):
    def fit(freezer):
        torch.manual_seed(3)
        model = Counting(mlp(), OPTIMIZERS["adamw"])
        make_trainer(freezer, max_epochs=EPOCHS).fit(model)
        return model, freezer

    model, freezer = fit(looking(monkeypatch, release=False))
    other, by_hand = fit(ByHand(second_look=False))
    assert model.losses == other.losses and same(model, other)
    assert freezer.frozen == []
    assert [(event.layer, event.step) for event in freezer.timeline.events if event.kind == "thaw"] == [
        (name, UNTIL) for name in HELD
    ]
    assert 0 < freezer.timeline.saved < by_hand.timeline.saved  # the look
    assert "held for 48 steps, and trained after that" in str(timeline_table(freezer.timeline).renderables[-1])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_the_look_lets_go_has_missed_nothing_but_the_probe(make_trainer, monkeypatch, optimizer, accumulate):
    def fit(freezer):
        torch.manual_seed(3)
        net = mlp()
        net[3].p = 0.0  # one that is held draws nothing
        model = InOrder(net, OPTIMIZERS[optimizer])
        make_trainer(freezer, max_epochs=EPOCHS * accumulate, accumulate_grad_batches=accumulate).fit(model)
        return model, freezer

    model, freezer = fit(looking(monkeypatch, release=True))
    nothing = looking(monkeypatch)
    nothing._start_predictor.forward = lambda inputs: torch.full((len(inputs),), -3.0)
    other, plain = fit(nothing)
    look = freezer.timeline.look
    assert (look.step, look.steps, look.stays, look.released) == (2, 12, 0, 2) and plain.timeline.start.held == []
    assert same(model, other) and model.losses[14 * accumulate :] == other.losses[14 * accumulate :]


class WarmingUp(InOrder):
    def __init__(self, net, until):
        super().__init__(net)
        self.until = until

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.until))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize(("until", "begin"), [(1, 2), (8, 8), (60, 12)])
def test_the_look_waits_for_the_learning_rate(make_trainer, monkeypatch, tmp_path, until, begin):
    freezer = looking(monkeypatch, release=False)
    saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    make_trainer(freezer, saved, max_epochs=EPOCHS, enable_checkpointing=True).fit(WarmingUp(mlp(), until))
    assert (freezer.timeline.look.step, freezer.timeline.look.steps) == (begin, 12)
    again = looking(monkeypatch, release=False)
    resumed = make_trainer(again, max_epochs=EPOCHS)
    resumed.fit(WarmingUp(mlp(), until), ckpt_path=str(tmp_path / f"step={begin - 1}.ckpt"))
    assert again.timeline.look.step == begin


@pytest.mark.parametrize("release", [False, True])
def test_a_resumed_run_is_the_same(make_trainer, monkeypatch, tmp_path, release):
    def fit(*callbacks, ckpt_path=None):
        torch.manual_seed(5)
        net = mlp()
        net[3].p = 0.0
        model, freezer = InOrder(net, OPTIMIZERS["adamw"]), looking(monkeypatch, release=release)
        made = make_trainer(freezer, *callbacks, max_epochs=EPOCHS, enable_checkpointing=True)
        made.fit(model, ckpt_path=ckpt_path)
        return model, freezer

    whole, freezer = fit(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1))
    for step in (2, 8) if release else (2, 8, UNTIL - 1, UNTIL, 60):
        again, resumed = fit(ckpt_path=str(tmp_path / f"step={step}.ckpt"))
        assert same(whole, again) and whole.losses[step:] == again.losses
        assert resumed.timeline.events == freezer.timeline.events and resumed.timeline.look == freezer.timeline.look


def test_the_run_that_goes_on_counts(make_trainer, monkeypatch, tmp_path):
    """Longer than it was, or with another mind."""

    def fit(epochs, ckpt_path=None, **how):
        freezer = looking(monkeypatch, release=False, **how)
        saved = ModelCheckpoint(tmp_path / str(epochs), "last", save_last=True)
        torch.manual_seed(5)
        model = InOrder(mlp())
        make_trainer(freezer, saved, max_epochs=epochs, enable_checkpointing=True).fit(model, ckpt_path=ckpt_path)
        return freezer, str(saved.last_model_path)

    short, path = fit(13)  # 104 steps
    assert short.frozen == HELD
    longer, _ = fit(20, path)  # 160, of which 64 are over
    assert longer.frozen == [] and longer.timeline.periods("net.0")[-1][1] == 105
    assert fit(20, path, second_look=False)[0].frozen == HELD


def test_in_a_second_fit_of_a_long_run_too(make_trainer, monkeypatch):
    freezer, model = looking(monkeypatch, release=False), InOrder(mlp())
    make_trainer(freezer, max_epochs=13).fit(model)
    assert freezer.frozen == HELD
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
    assert freezer.frozen == [] and freezer.timeline.look.steps == 12


def test_a_second_fit_that_is_short_is_looked_at_like_a_short_one(make_trainer, monkeypatch):
    freezer, model = looking(monkeypatch, release=False), InOrder(mlp())
    make_trainer(freezer, StopAt(8), max_epochs=13).fit(model)
    assert freezer.timeline.look is None
    make_trainer(freezer, max_epochs=13).fit(model)
    assert (freezer.timeline.look.step, freezer.timeline.look.steps) == (8 + 11, 10)


@pytest.mark.parametrize(("probe_steps", "saves"), [(2, 0.3), (2, 0.2), (40, 0.9)])
def test_nobody_looks_where_the_front_trains_again_before_it_has_saved_as_much(
    make_trainer, monkeypatch, probe_steps, saves
):
    monkeypatch.setattr(look_beside.LookBeside, "_saves", saves)
    freezer = looking(monkeypatch, release=False, probe_steps=probe_steps)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(mlp()))
    assert (freezer.timeline.look is not None) == (saves == 0.3)  # 12 steps, of 46 in which it is held
    assert freezer.frozen == []


@pytest.mark.parametrize("how", [{"second_look": False}, {"save": 0.3}, {"max_epochs": 13}])
def test_who_wants_it_held_holds_it_and_so_does_a_short_run(make_trainer, monkeypatch, how):
    epochs = how.pop("max_epochs", EPOCHS)
    freezer = looking(monkeypatch, release=False, **how)
    make_trainer(freezer, max_epochs=epochs).fit(InOrder(mlp()))
    assert freezer.frozen == freezer.timeline.start.held and freezer.frozen


def test_what_the_look_left_trains_too_and_what_others_froze_does_not(make_trainer, monkeypatch):
    freezer = looking(monkeypatch, release=False)
    net = mlp()
    net[4].requires_grad_(False)
    weights = net[4].weight.clone()
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(net))
    assert freezer.timeline.start.held == HELD[:1] and freezer.frozen == [] and net[4].weight.equal(weights)


def test_its_dropout_drops_again_and_its_cache_is_given_back(make_trainer, monkeypatch):
    seen = []

    class Watch(SmartFreezeCallback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            seen.append((pl_module.net[0][2].training, bool(self._engine._front.cache.units)))

    looking(monkeypatch, release=False)
    front = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.ReLU())
    freezer = Watch(cache_front=True)
    net = nn.Sequential(front, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(net))
    assert freezer.frozen == []
    assert (False, True) in seen[:UNTIL] and set(seen[UNTIL:]) == {(True, False)}


def test_what_freezes_by_hand_after_that_stays(make_trainer, monkeypatch):
    class Again(SmartFreezeCallback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if self.timeline.steps == UNTIL + 2:
                self._engine.change(freeze_now=HELD[:1])

    looking(monkeypatch, release=False)
    freezer = Again()
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(mlp()))
    assert freezer.frozen == HELD[:1] and freezer.timeline.periods("net.4")[-1][1] == UNTIL


@pytest.mark.parametrize("accumulate", [1, 2])
def test_in_a_loop_of_your_own(monkeypatch, accumulate):
    method = looking(monkeypatch)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    batches = [(torch.rand(8, 8), torch.randint(3, (8,))) for _ in range(120 * accumulate)]
    freezer = Freezer(net, optimizer, method, batches_per_epoch=len(batches), total_batches=len(batches))
    still = []
    for number, (x, y) in enumerate(batches):
        before = net[0].weight.clone()
        with freezer.batch((x, y)):
            nn.functional.cross_entropy(net(x), y).backward()
            if (number + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        if (number + 1) % accumulate == 0:
            still.append(net[0].weight.equal(before))
    freezer.end_epoch(last=True)
    freezer.end()
    assert all(still[:UNTIL]) and not any(still[UNTIL:])


def test_in_a_stream_of_unknown_length(make_trainer, monkeypatch):
    class Stream(InOrder):
        def train_dataloader(self):
            return DataLoader(Endless(), 8)

    class Endless(IterableDataset):
        def __iter__(self):
            return cycle(Vectors())

    for module in (smart, look_beside):  # it counts as a run of so many steps
        monkeypatch.setattr(module, "LONGEST", 120)
    freezer = looking(monkeypatch, release=False)
    make_trainer(freezer, StopAt(UNTIL + 5), max_epochs=-1).fit(Stream(mlp()))
    assert {event.step for event in freezer.timeline.events if event.kind == "thaw"} == {UNTIL}
    assert freezer.timeline.steps == UNTIL + 5 and freezer.frozen == []
