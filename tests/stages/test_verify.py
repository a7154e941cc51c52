"""The trial: full training on shadow weights beside a frozen prefix, and what becomes of both."""

import gc
import math
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from models import Classifier, mlp
from staging import (
    A_PART,
    ANYWAY,
    EPOCHS,
    FROZEN,
    HALF_SURE,
    LONG,
    NEVER,
    NOTHING,
    OPTIMIZERS,
    InOrder,
    Safe,
    moved,
    notes,
    quiet_mlp,
    same,
    smart,
    trained,
)  # fmt: skip
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from smartfrz_lightning import SmartFreezeCallback
from smartfrz_lightning.engine.shadow import ShadowWeights
from smartfrz_lightning.stages import StartStage, VerifyStage
from smartfrz_lightning.stages.verify import how_many_stay, likely_part


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
        torch.manual_seed(3)
        model, freezer = Counting(optimizer=OPTIMIZERS[optimizer]), smart(**how)
        fitted = make_trainer(freezer, **{"max_epochs": EPOCHS, **TRAINERS[trainer]})
        fitted.fit(model)
        return model, freezer, fitted

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

    class ByHand(SmartFreezeCallback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if self.timeline.steps == 12:
                self.thaw()

    def fit(freezer):
        torch.manual_seed(3)
        model = Counting(optimizer=OPTIMIZERS[optimizer])
        make_trainer(freezer, **{"max_epochs": EPOCHS, **TRAINERS[trainer]}).fit(model)
        return model, freezer

    model, freezer = fit(smart(verdict=NEVER))
    other, by_hand = fit(ByHand(StartStage(Safe(), verified=False), verify=False, attention=False))
    assert freezer.frozen == by_hand.frozen == [] and "everything trains" in notes(freezer)
    assert same(model, other) and all(parameter.requires_grad for parameter in model.net.parameters())
    batches = 24 * TRAINERS[trainer].get("accumulate_grad_batches", 1)
    assert model.losses[batches:] == other.losses[batches:] and model.losses != other.losses
    assert [event.step for event in freezer.timeline.events] == [2, 2, 24, 24]


def test_a_part_of_the_prefix_stays(make_trainer):
    freezer = smart(HALF_SURE, verdict=A_PART)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder())
    assert freezer.frozen == FROZEN[:1] and "1 of 2 layers stay frozen" in notes(freezer)


def test_what_stays_after_a_trial_is_unfrozen_by_the_schedule(make_trainer):
    predictor = Safe((0.4, 3.0), (0.7, 1.5), (1.1, -3.0))
    freezer = smart(predictor, verdict={**A_PART, "likely": 0.9}, schedule=LONG)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder())
    assert "1 of 2 layers stay frozen" in notes(freezer) and "was frozen for 48 steps" in notes(freezer)
    assert freezer.frozen == [] and freezer.timeline.events[-1].step == 48


def test_a_prefix_that_holds_the_network_back_is_unfrozen(make_trainer):
    """The first layer lets nothing through of what the classes depend on."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    trained(net[0])
    with torch.no_grad():
        net[0].weight[:, :2] = 0
    freezer = smart(Safe((0.5, 3.0), (1.1, -3.0)))
    make_trainer(freezer, max_epochs=40).fit(InOrder(net, lambda p: torch.optim.SGD(p, lr=0.2)))
    assert not freezer.frozen and "lower; everything trains" in notes(freezer)


def test_a_prefix_that_is_better_left_alone_stays(make_trainer):
    """It passes on what the classes depend on; at this rate it would lose it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    net[0].weight.data = 3 * torch.eye(12)
    net[0].weight.data[11, 11] = 20.0  # no random matrix has such a singular value
    freezer = smart(Safe((0.5, 3.0), (1.1, -3.0)))
    make_trainer(freezer, max_epochs=50).fit(InOrder(net, lambda p: torch.optim.SGD(p, lr=0.5)))
    assert freezer.frozen and "higher" in notes(freezer)


def test_how_many_layers_stay():
    safe, inf, nan = [0.9, 0.85, 0.6], math.inf, math.nan
    assert [how_many_stay(safe, gain, error=0.01) for gain in (-0.02, -0.01, 0.0, 0.02)] == [3, 2, 0, 0]
    assert [how_many_stay(safe, gain, error=0.1) for gain in (-inf, inf, nan)] == [3, 0, 2]
    assert likely_part([0.9, 0.7, 0.85, 0.6]) == 3 and likely_part([0.6]) == 0


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
        torch.manual_seed(3)
        model, freezer = Skips(trained(mlp(norm=False))), smart(**how)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        make_trainer(freezer, max_epochs=EPOCHS, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(model)
        return model, freezer

    (model, freezer), (other, _) = fit(verdict=ANYWAY), fit(verify=False)
    assert "Trial" in notes(freezer) and model.losses == other.losses and same(model, other)


# --- what a second pass must see, and must not touch


class Weighted(InOrder):
    """The weight of its loss is set at the start of every epoch."""

    def on_train_epoch_start(self):
        self.weight = 1.0 / (1 + self.current_epoch)

    def training_step(self, batch, batch_idx):
        return self.weight * super().training_step(batch, batch_idx)


class SetsWeight(Callback):
    """The same by another callback, which also changes batches and gradients."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.scale = 1.0 / (1 + trainer.global_step)
        batch[0].add_(1.0)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)


class Scaled(InOrder):
    def training_step(self, batch, batch_idx):
        return self.scale * super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("kind", "callbacks"), [(Weighted, ()), (Scaled, (SetsWeight,))])
def test_the_trial_sees_what_hooks_and_other_callbacks_change(make_trainer, kind, callbacks):
    def fit(freezer):
        torch.manual_seed(3)
        model = kind(quiet_mlp())
        make_trainer(freezer, *[make() for make in callbacks], max_epochs=EPOCHS).fit(model)
        return model

    def by_hand():
        class ByHand(SmartFreezeCallback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
                if self.timeline.steps == 12:
                    self.thaw()

        return ByHand(StartStage(Safe(), verified=False), verify=False, attention=False)

    assert same(fit(smart(verdict=NEVER)), fit(by_hand()))


def test_gradient_masks_act_on_the_shadow_weights(make_trainer):
    model, masked = InOrder(), []
    mask = torch.zeros(16, 16)
    model.net[7].weight.register_hook(lambda grad: masked.append(1) or grad * mask)
    before = model.net[7].weight.clone()
    freezer = smart(verdict=NEVER)
    make_trainer(freezer, max_epochs=EPOCHS).fit(Undecayed.of(model))
    assert not freezer.frozen and torch.equal(model.net[7].weight, before)


class Undecayed:
    @staticmethod
    def of(model):
        model.make = lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)
        return model


def test_nothing_outside_of_the_second_pass_is_touched(make_trainer, tmp_path):
    logged = []

    class Logger(CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.append((step, *metrics))

    class Reaching(InOrder):
        def __init__(self):
            super().__init__()
            self.net.note = self.log  # a submodule that logs
            self.generator = torch.Generator().manual_seed(0)
            self.state = {"drawn": []}

        def training_step(self, batch, batch_idx):
            self.state["drawn"].append(float(torch.rand(1, generator=self.generator)))
            loss = super().training_step(batch, batch_idx)
            self.net.note("inner", loss, on_epoch=True, on_step=False)
            self.logger.log_metrics({"own": 1.0}, self.global_step)
            self.trainer.should_stop = self.trainer.should_stop or self.net[0].weight.requires_grad
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler.step()
            self.lr_schedulers().step()
            return loss

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)]

    def fit(verify):
        del logged[:]
        torch.manual_seed(3)
        model = Reaching()
        model.net[0].requires_grad_(True)
        freezer = smart(verify=verify, verdict=ANYWAY, probe=2)

        class Lets(Callback):  # only once the prefix is frozen
            def on_train_batch_end(self, trainer, *_):
                trainer.should_stop = False

        trainer = make_trainer(Lets(), freezer, max_epochs=EPOCHS, logger=Logger(tmp_path))
        trainer.fit(model)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        return model, trainer.global_step, rate, trainer.callback_metrics["inner"], list(logged)

    one, steps, rate, inner, wrote = fit(True)
    other, *rest = fit(False)
    assert (steps, rate, inner) == tuple(rest[:3]) and [w for w in wrote if "own" in w] == [
        w for w in rest[3] if "own" in w
    ]
    assert one.state == other.state and same(one, other)


@dataclass(frozen=True)
class Pair:
    x: torch.Tensor
    y: torch.Tensor


class Named(Mapping):
    """A mapping whose constructor wants something else."""

    def __init__(self, x, y):
        self.inner = {"x": x, "y": y}

    def __getitem__(self, name):
        return self.inner[name]

    def __iter__(self):
        return iter(self.inner)

    def __len__(self):
        return 2


@pytest.mark.parametrize("kind", [Pair, Named])
def test_batches_of_the_users_own_kind_and_steps_that_write_into_them(make_trainer, kind):
    class Own(InOrder):
        def transfer_batch_to_device(self, batch, device, index):
            return batch

        def on_before_batch_transfer(self, batch, index):
            return batch if isinstance(batch, Pair | Named) or not self.trainer.training else kind(*batch)

        def training_step(self, batch, batch_idx):
            x, y = (batch.x, batch.y) if kind is Pair else (batch["x"], batch["y"])
            x.sub_(1).mul_(2)
            return super().training_step((x, y), batch_idx)

    freezer = smart(verdict=ANYWAY)
    model = Own(trained(mlp(norm=False)), lambda p: torch.optim.SGD(p, lr=0.0))
    make_trainer(freezer, max_epochs=EPOCHS, limit_val_batches=0).fit(model)
    assert "the loss was 0 ±" in notes(freezer)


class Lookahead(torch.optim.Optimizer):
    """Holds another optimizer, and numbers of its own."""

    def __init__(self, parameters):
        self.inner = torch.optim.SGD(parameters, 0.05, momentum=0.9)
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self.param_groups, self.every, self.count = self.inner.param_groups, 5, 0

    def step(self, closure=None):
        loss = self.inner.step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for group in self.param_groups:
                for parameter in group["params"]:
                    slow = self.state[parameter].setdefault("slow", parameter.detach().clone())
                    parameter.data.copy_(slow.lerp_(parameter.detach(), 0.5))
        return loss


def test_optimizers_with_attributes_of_their_own(make_trainer):
    freezer = smart(verdict=NEVER)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(optimizer=Lookahead))
    assert "Trial" in notes(freezer) and not freezer.frozen


def test_memory_is_given_back_and_checkpoints_are_no_larger(make_trainer, tmp_path):
    alive = weakref.WeakSet()

    class Kept(VerifyStage):
        def _open(self, *arguments):
            super()._open(*arguments)
            alive.add(self._trial.shadow)

    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    freezer, model = smart(verify=Kept(**ANYWAY)), InOrder()
    alive_at = {}

    class Count(Callback):
        def on_train_batch_end(self, trainer, *_):
            alive_at[trainer.global_step] = len(alive)

    gc.collect()
    gc.disable()
    try:
        make_trainer(freezer, Count(), every, max_epochs=EPOCHS, enable_checkpointing=True).fit(model)
    finally:
        gc.enable()
    assert alive_at[20] == 1 and alive_at[24] == 0  # at once, not when cycles are found
    assert "training_step" not in vars(model)
    size = {step: (tmp_path / f"step={step}.ckpt").stat().st_size for step in (11, 20)}
    assert size[20] == pytest.approx(size[11], rel=0.05)


@pytest.mark.parametrize("step", [12, 19])
def test_a_run_that_is_resumed_in_a_trial_begins_it_again(make_trainer, tmp_path, step):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    make_trainer(smart(verdict=NEVER), every, max_epochs=EPOCHS, enable_checkpointing=True).fit(InOrder(quiet_mlp()))
    freezer, model = smart(verdict=NEVER), InOrder(quiet_mlp())
    make_trainer(freezer, max_epochs=EPOCHS).fit(model, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    assert f"Trial, steps {step} to {step + 12}" in notes(freezer) and not freezer.frozen


@pytest.mark.parametrize("verdict", [ANYWAY, NEVER], ids=["stays", "adopted"])
@pytest.mark.parametrize("step", [11, 24, 60])
def test_a_run_that_is_resumed_outside_of_a_trial_is_the_same(make_trainer, tmp_path, verdict, step):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole, freezer = InOrder(quiet_mlp(), OPTIMIZERS["adamw"]), smart(verdict=verdict)
    make_trainer(freezer, every, max_epochs=EPOCHS, enable_checkpointing=True).fit(whole)
    again, resumed = InOrder(quiet_mlp(), OPTIMIZERS["adamw"]), smart(verdict=verdict)
    made = make_trainer(resumed, max_epochs=EPOCHS)
    made.fit(again, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    assert same(whole, again) and again.losses == whole.losses[step:]
    assert resumed.timeline.events == freezer.timeline.events


# --- where there can be no trial


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


MISHAPS = {Holding: "model's own weights", Failing: "not with all of it", Growing: "got other parameters"}
MISHAPS |= {Uncopied: "batch cannot be copied"}


@pytest.mark.parametrize("kind", MISHAPS)
def test_what_goes_wrong_in_a_trial_does_not_touch_the_model(make_trainer, kind):
    def fit(**how):
        torch.manual_seed(3)
        model, freezer = kind(quiet_mlp(), OPTIMIZERS["adamw"]), smart(**how)
        make_trainer(freezer, max_epochs=EPOCHS).fit(model)
        return model, freezer

    (model, freezer), (other, _) = fit(verdict=NEVER), fit(verify=False)
    assert same(model, other) and freezer.frozen == FROZEN
    half, part = kind(), smart(HALF_SURE)
    make_trainer(part, max_epochs=EPOCHS).fit(half)
    assert part.frozen == FROZEN[:1] and MISHAPS[kind] in notes(part)


def manual(self, batch, batch_idx):
    loss = InOrder.training_step(self, batch, batch_idx)
    optimizer = self.optimizers()
    self.manual_backward(loss)
    optimizer.step()
    optimizer.zero_grad()


REFUSED = {
    "manual optimization": ({"training_step": manual}, "steps the optimizers itself"),
    "own backward": ({"backward": lambda self, loss, *_, **__: loss.backward()}, "has its own backward"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_loop_that_cannot_verify_says_so_at_the_start(make_trainer, kind):
    attributes, why = REFUSED[kind]
    model = type("Odd", (InOrder,), attributes)()
    model.automatic_optimization = kind != "manual optimization"
    freezer = smart(HALF_SURE)
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
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


# --- long runs


class ReleasedByHand(SmartFreezeCallback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.timeline.steps == 48:
            self._engine.change(thaw_now=FROZEN)


def test_in_a_long_run_the_prefix_trains_after_two_fifths(make_trainer):
    def fit(freezer):
        torch.manual_seed(3)
        model = Counting(optimizer=OPTIMIZERS["adamw"])
        make_trainer(freezer, max_epochs=EPOCHS).fit(model)
        return model, freezer

    model, freezer = fit(smart(verdict=ANYWAY, schedule=LONG))
    other, _ = fit(ReleasedByHand(StartStage(Safe(), verified=False), verify=False, attention=False))
    assert model.losses == other.losses and same(model, other) and freezer.frozen == []
    assert "frozen for 48 steps" in notes(freezer)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_released_in_a_long_run_has_missed_nothing_but_the_probe(make_trainer, accumulate):
    def fit(freezer):
        torch.manual_seed(3)
        model = InOrder(quiet_mlp(), OPTIMIZERS["adamw"])
        trainer = make_trainer(freezer, max_epochs=EPOCHS * accumulate, accumulate_grad_batches=accumulate)
        trainer.fit(model)
        return model, freezer

    model, freezer = fit(smart(verdict=NEVER, schedule=LONG))
    other, _ = fit(smart(NOTHING, schedule=LONG))
    assert "Trial, steps 2 to 14" in notes(freezer)
    assert same(model, other) and model.losses[14 * accumulate :] == other.losses[14 * accumulate :]


@pytest.mark.parametrize(("until", "begin"), [(1, 2), (8, 8), (60, 12)])
def test_the_trial_waits_for_the_learning_rate(make_trainer, until, begin):
    class WarmingUp(InOrder):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / until))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    freezer = smart(verdict=ANYWAY, schedule=LONG)
    make_trainer(freezer, max_epochs=EPOCHS).fit(WarmingUp())
    assert f"Trial, steps {begin} to {begin + 12}" in notes(freezer)


def test_a_saving_is_kept_to_the_end_without_a_trial(make_trainer):
    start = StartStage(Safe(), save=0.3, schedule=LONG)
    freezer = SmartFreezeCallback(start, verify=False, attention=False)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder())
    assert freezer.frozen == FROZEN and "Trial" not in notes(freezer)


# --- shadow weights by themselves


def test_shadow_weights_share_what_never_moves_and_own_what_trains():
    net = quiet_mlp()
    net[0].requires_grad_(False)
    shadow = ShadowWeights(net, torch.optim.SGD(net.parameters(), 0.1), [])
    assert "0.weight" not in shadow.tensors and "4.weight" in shadow.tensors and "1.running_mean" in shadow.tensors
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def body():
        net(torch.rand(8, 12)).square().sum().backward()
        shadow.optimizer.step()
        net.order = OrderedDict(a=1)

    shadow.swapped(body)
    assert moved(before, net.state_dict()) == set() and not hasattr(net, "order")
    assert not torch.equal(shadow.tensors["4.weight"], net[4].weight)
    assert not torch.equal(shadow.tensors["1.running_mean"], net[1].running_mean)


def test_tied_weights_are_one_in_the_shadow():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    shadow = ShadowWeights(net, torch.optim.SGD(net.parameters(), 0.1), [])
    shadow.swapped(lambda: net(torch.rand(2, 4)).sum().backward())
    assert net[2].weight is net[0].weight and shadow.tensors["0.weight"].grad is not None


def test_data_without_a_loader_length_counts_as_a_long_run(make_trainer):
    class Stream(Classifier):
        def train_dataloader(self):
            from torch.utils.data import IterableDataset

            class Endless(IterableDataset):
                def __iter__(self):
                    while True:
                        yield from [(torch.randn(12), torch.tensor(1))]

            return DataLoader(Endless(), 8)

    freezer = smart(probe=3, schedule=LONG, verdict=ANYWAY)
    make_trainer(freezer, max_epochs=-1, max_time="00:00:00:04", limit_val_batches=0).fit(Stream(trained(mlp())))
    assert "frozen for 44 steps" in notes(freezer)  # two fifths of the length that counts as long
