"""The trial leaves no trace, adopts what an unfrozen run would have come to, and survives mishaps and resumes."""

import functools
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from models import Manual, mlp
from staging import (
    ANYWAY,
    EPOCHS,
    FROZEN,
    HALF_SURE,
    NEVER,
    OPTIMIZERS,
    ByHand,
    InOrder,
    Safe,
    fitted,
    notes,
    quiet_mlp,
    same,
    smart,
    trained,
)  # fmt: skip
from timm.optim import create_optimizer_v2
from torch import nn
from torchmetrics.classification import MulticlassAccuracy


class Counting(InOrder):
    """Has buffers, lists, metrics and an average of its weights that its step and its hooks move."""

    def __init__(self, net=None, optimizer=None):
        super().__init__(net, optimizer)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("unsaved", torch.zeros(()), persistent=False)
        self.accuracy = MulticlassAccuracy(3)
        self.average = nn.Linear(16, 3).requires_grad_(False)
        self.calls = 0

    def training_step(self, batch, batch_idx):
        self.seen += len(batch[0])
        self.unsaved += 1
        self.calls += 1
        loss = super().training_step(batch, batch_idx)
        self.accuracy(self(batch[0]), batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True)
        return {"loss": loss, "more": 1}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        assert set(outputs) == {"loss", "more"}
        self.average.weight.data.lerp_(self.net[9].weight.detach(), 0.1)

    def on_before_optimizer_step(self, optimizer):
        torch.rand(2)


TRAINERS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2, "max_epochs": 30},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trial_that_changes_nothing_leaves_no_trace(make_trainer, trainer, optimizer):
    def fit(**how):
        make = functools.partial(Counting, optimizer=OPTIMIZERS[optimizer])
        return fitted(make_trainer, make, smart(**how), **TRAINERS[trainer])

    model, freezer, tried = fit(verdict=ANYWAY)
    other, blind, untried = fit(verify=False)
    assert model.losses == other.losses and same(model, other) and model.calls == other.calls
    assert tried.callback_metrics["accuracy"] == untried.callback_metrics["accuracy"]
    assert freezer.frozen == blind.frozen == FROZEN
    assert "Trial, steps 12 to 24" in notes(freezer) and "stays frozen" in notes(freezer)
    dearer = freezer.timeline.spent.total - blind.timeline.spent.total
    assert dearer == pytest.approx(0.1 * freezer.timeline.full.total, rel=0.03)  # batches of five and of eight


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_weights_that_are_adopted_are_those_of_a_prefix_unfrozen_before(make_trainer, trainer, optimizer):
    """Unfrozen by hand where the trial began, the same training has the same end, to the bit."""
    make = functools.partial(Counting, optimizer=OPTIMIZERS[optimizer])
    model, freezer, _ = fitted(make_trainer, make, smart(verdict=NEVER), **TRAINERS[trainer])
    other, by_hand, _ = fitted(make_trainer, make, ByHand(), **TRAINERS[trainer])
    assert freezer.frozen == by_hand.frozen == [] and "everything trains" in notes(freezer)
    assert same(model, other) and all(parameter.requires_grad for parameter in model.net.parameters())
    batches = 24 * TRAINERS[trainer].get("accumulate_grad_batches", 1)
    assert model.losses[batches:] == other.losses[batches:] and model.losses != other.losses
    assert [event.step for event in freezer.timeline.events] == [2, 2, 24, 24]


@pytest.mark.parametrize("name", ["lamb", "lookahead_adamw"])  # a step that counts in a group, and an inner optimizer
def test_optimizers_of_timm(make_trainer, name):
    def fit(freezer):
        make = functools.partial(Counting, optimizer=lambda p: create_optimizer_v2(list(p), opt=name, lr=0.01))
        return fitted(make_trainer, make, freezer)[0]

    assert same(fit(smart(verdict=ANYWAY)), fit(smart(verify=False)))
    assert same(fit(smart(verdict=NEVER)), fit(ByHand()))


def test_with_nothing_to_train_both_losses_are_equal(make_trainer):
    """Whatever is drawn at random, taken out of the batch, or weighed by the step."""

    class Drawing(InOrder):
        def training_step(self, batch, batch_idx):
            x, y = batch.pop(0), batch.pop(0)
            share = float(np.random.beta(1, 1))
            x = x.mul_(2) + torch.randn(len(x), 12)
            return super().training_step((share * x + (1 - share) * x.flip(0), y), batch_idx) * self.global_step

    freezer = smart(verdict=ANYWAY)
    make_trainer(freezer, max_epochs=EPOCHS).fit(
        Drawing(trained(mlp(norm=False)), lambda p: torch.optim.SGD(p, lr=0.0))
    )
    assert "the loss was 0 ±" in notes(freezer)


def test_a_scaler_of_its_own_and_batches_without_a_loss(make_trainer):
    class Skips(InOrder):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 5 else super().training_step(batch, batch_idx)

    def fit(**how):
        scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
        return fitted(make_trainer, lambda: Skips(trained(mlp(norm=False))), smart(**how), plugins=[scaler])

    (model, freezer, _), (other, *_) = fit(verdict=ANYWAY), fit(verify=False)
    assert "Trial" in notes(freezer) and model.losses == other.losses and same(model, other)


@pytest.mark.parametrize("step", [12, 19])
def test_a_run_that_is_resumed_in_a_trial_begins_it_again(make_trainer, tmp_path, step):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    make_trainer(smart(verdict=NEVER), every, max_epochs=EPOCHS, enable_checkpointing=True).fit(InOrder(quiet_mlp()))
    freezer, model = smart(verdict=NEVER), InOrder(quiet_mlp())
    make_trainer(freezer, max_epochs=EPOCHS).fit(model, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    assert f"Trial, steps {step} to {step + 12}" in notes(freezer) and not freezer.frozen


class Holding(InOrder):
    """Computes with its weights through tensors that it has put aside."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        weight = self.net[9].weight
        self.penalty = lambda: weight.square().sum()

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0.0 * self.penalty()


class Failing(InOrder):
    def training_step(self, batch, batch_idx):
        assert not (self.global_step > 14 and self.net[0].weight.requires_grad), "not with all of it"
        return super().training_step(batch, batch_idx)


class Growing(InOrder):
    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == 18:
            self.trainer.optimizers[0].add_param_group({"params": [nn.Parameter(torch.ones(1))]})


class Uncopied(InOrder):
    def on_before_batch_transfer(self, batch, index):
        return [*batch, (value for value in ())] if self.trainer.training else batch  # a generator cannot be copied


class Outside(InOrder):
    """Its loss has weights that are not the module's."""

    def __init__(self, *args):
        super().__init__(*args)
        self.criterion = [nn.Linear(3, 3)]

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.criterion[0](self(batch[0])), batch[1])

    def configure_optimizers(self):
        return self.make([*self.parameters(), *self.criterion[0].parameters()])


MISHAPS = {Holding: "model's own weights", Failing: "not with all of it", Growing: "other parameters train by now"}
MISHAPS |= {Uncopied: "attributes cannot be copied", Outside: "trains parameters that the model does not have"}


@pytest.mark.parametrize("kind", MISHAPS)
def test_what_goes_wrong_in_a_trial_does_not_touch_the_model(make_trainer, kind):
    def make():
        return kind(quiet_mlp(), OPTIMIZERS["adamw"])

    model, freezer, _ = fitted(make_trainer, make, smart(verdict=NEVER))
    other, *_ = fitted(make_trainer, make, smart(verify=False))
    assert same(model, other) and freezer.frozen == FROZEN
    half, part = kind(), smart(HALF_SURE)
    make_trainer(part, max_epochs=EPOCHS).fit(half)
    assert part.frozen == FROZEN[:1] and MISHAPS[kind] in notes(part)


class OwnBackward(InOrder):
    def backward(self, loss, *args, **kwargs):
        loss.backward()


@pytest.mark.parametrize(
    ("kind", "why"), [(Manual, "steps the optimizers itself"), (OwnBackward, "has its own backward")]
)
def test_a_loop_that_cannot_verify_says_so_at_the_start(make_trainer, kind, why):
    freezer = smart(HALF_SURE)
    make_trainer(freezer, max_epochs=EPOCHS).fit(kind(trained(mlp())))
    assert why in freezer.timeline.notes[0] and "at least 0.8" in freezer.timeline.notes[0]
    assert [event.layer for event in freezer.timeline.events] == freezer.frozen == FROZEN[:1]


def test_no_trial_that_costs_more_than_it_can_save(make_trainer):
    net = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 3))
    freezer = smart(Safe((0.4, 1.0), (1.1, -3.0)))
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(trained(net)))
    assert not freezer.frozen and "cost more" in notes(freezer)


def test_a_prefix_that_somebody_unfreezes_meanwhile_is_tried_no_longer(make_trainer):
    class Thaws(InOrder):
        def on_train_batch_start(self, batch, batch_idx):
            if self.trainer.global_step == 16:
                freezer.thaw()

    freezer = smart(verdict=NEVER)
    make_trainer(freezer, max_epochs=EPOCHS).fit(Thaws())
    assert "Trial" not in notes(freezer) and not freezer.frozen


def test_the_callback_can_be_pickled_meanwhile(make_trainer):
    class Pickles(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 16:
                pickle.loads(pickle.dumps(freezer))

    freezer = smart(verdict=NEVER)
    make_trainer(freezer, Pickles(), max_epochs=EPOCHS).fit(InOrder())


def test_a_further_fit_leaves_the_prefix_frozen_and_tries_nothing(make_trainer):
    model, freezer = InOrder(trained(mlp())), smart(verdict=ANYWAY)
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
    assert freezer.frozen == FROZEN
    freezer.stages["verify"].bound = NEVER["bound"]  # a trial would release it
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
    assert freezer.frozen == FROZEN and notes(freezer).count("Trial, steps") == 1
