"""PlanCallback: what freezing would save, measured in the first steps of a training."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from models import Classifier, mlp
from staging import HALF_SURE, NOTHING, Safe, Told, trained

from smartfrz_lightning import PlanCallback, SmartFreezeCallback, StaticFreezeCallback
from smartfrz_lightning.cli import plan_command
from smartfrz_lightning.stages import LaterStage, StartStage


def planned(make_trainer, predictor=None, net=None, epochs=20, **how):
    plan = PlanCallback(StartStage(predictor or Safe(), probe_steps=4), **how)
    trainer = make_trainer(plan, max_epochs=epochs, limit_val_batches=0)
    trainer.fit(Classifier(trained(mlp()) if net is None else net))
    return plan, trainer


def test_every_prefix_is_measured_and_the_training_stops(make_trainer, capsys):
    plan, trainer = planned(make_trainer)
    assert [prefix.layers for prefix in plan.plan] == [0, 1, 2, 3] and not plan.frozen[3:]
    assert trainer.global_step == 4 + 1 + 4 * 10
    assert [prefix.default for prefix in plan.plan] == [False, False, True, False]
    assert [round(prefix.safe or 0, 2) for prefix in plan.plan] == [0, 0.95, 0.95, 0.05]
    assert [prefix.later for prefix in plan.plan] == [None, 0.4, 0.8, None]  # the last third always trains
    flops = [prefix.flops for prefix in plan.plan]
    assert flops[0] == 1 and flops == sorted(flops, reverse=True) and flops[-1] < 0.6
    assert all(prefix.seconds > 0 for prefix in plan.plan) and plan.plan[-1].parameters < 1
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "SmartFreezeCallback(): After a probe of 4 steps 2 of 3 layers are frozen" in out
        and "StaticFreezeCallback(layers=2)" in out
    )


def test_steps_of_several_batches(make_trainer):
    plan = PlanCallback(StartStage(Safe(), probe_steps=4))
    trainer = make_trainer(plan, max_epochs=40, limit_val_batches=0, accumulate_grad_batches=4)
    trainer.fit(Classifier(trained(mlp())))
    assert [prefix.layers for prefix in plan.plan] == [0, 1, 2, 3] and trainer.global_step == 4 + 1 + 4 * 10


def test_the_line_by_hand_does_what_was_planned(make_trainer):
    plan, _ = planned(make_trainer)
    chosen = next(prefix for prefix in plan.plan if prefix.default)
    by_hand = StaticFreezeCallback(layers=chosen.layers)
    make_trainer(by_hand, max_epochs=1).fit(Classifier(mlp()))
    assert by_hand.frozen[-1] == chosen.last and by_hand.timeline.cost.relative(by_hand.frozen) == chosen.flops


@pytest.mark.parametrize(
    ("predictor", "net", "says"),
    [
        (NOTHING, lambda: trained(mlp()), "nothing is frozen: p(safe) is 0.05 at most, and has to be 0.65"),
        (Safe(), mlp, "no layer that trains has been trained before"),
    ],
    ids=["nothing is safe", "random weights"],
)
def test_why_nothing_is_advised(make_trainer, capsys, predictor, net, says):
    plan, _ = planned(make_trainer, predictor, net())
    out = " ".join(capsys.readouterr().out.split())
    assert not any(prefix.default for prefix in plan.plan) and says in out and "by hand" not in out


def test_the_default_without_a_trial(make_trainer, capsys):
    half_sure, shown = StartStage(HALF_SURE, probe_steps=4), []
    for verify in (True, False):
        SmartFreezeCallback(half_sure, verify=verify)
        plan = PlanCallback(half_sure)
        make_trainer(plan, max_epochs=20, limit_val_batches=0).fit(Classifier(trained(mlp())))
        shown += [prefix.layers for prefix in plan.plan if prefix.default]
    assert shown == [2, 1]


def test_a_run_that_ends_before_says_so(make_trainer, capsys):
    plan, _ = planned(make_trainer, epochs=3)
    assert [prefix.layers for prefix in plan.plan] == [0, 1]
    assert "ended after 24 steps" in " ".join(capsys.readouterr().out.split())


def test_a_later_stage_of_ones_own_or_none(make_trainer):
    never, _ = planned(make_trainer, later=LaterStage(Told(-9.0, -9.0, -9.0)))
    without, _ = planned(make_trainer, later=False)
    assert [prefix.later for prefix in never.plan] == [prefix.later for prefix in without.plan] == 4 * [None]


def test_a_run_too_short_for_a_probe_is_measured_all_the_same(make_trainer, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = PlanCallback()
    make_trainer(plan, max_epochs=10, limit_val_batches=0).fit(Classifier(trained(mlp())))
    assert [prefix.layers for prefix in plan.plan] == [0, 1, 2, 3] and plan.plan[1].safe is None
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "Nothing is frozen at the start: that needs a run of 100 steps, and this one has 80" in out
        and "by hand" not in out
    )  # nothing is advised without knowing
    assert not list(tmp_path.glob("*.png"))  # without a logger


def test_what_is_excluded_is_no_part_of_it(make_trainer, tmp_path, capsys):
    plan = PlanCallback(StartStage(Safe(), probe_steps=4), exclude="net.7")
    trainer = make_trainer(plan, max_epochs=20, limit_val_batches=0, logger=CSVLogger(tmp_path))
    trainer.fit(Classifier(trained(mlp())))
    assert [prefix.last for prefix in plan.plan][-1] == "net.4"
    assert "by hand: StaticFreezeCallback(layers=1, exclude=['net.7'])" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "lightning_logs" / "version_0" / "freeze_plan.png").stat().st_size > 5000


def test_the_default_that_is_planned_has_its_share_to_save(make_trainer):
    default = SmartFreezeCallback(StartStage(Safe(), probe_steps=4), save=0.05)
    plan = PlanCallback(default.stages["start"])
    make_trainer(plan, max_epochs=20, limit_val_batches=0).fit(Classifier(trained(mlp())))
    assert [prefix.default for prefix in plan.plan] == [False, True, False, False]  # the first of two as safe


def test_the_command_takes_the_configs_of_fit(tmp_path, capsys):
    torch.manual_seed(1)
    quiet = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]
    smaller = ["--data.size=32", "--trainer.enable_progress_bar=false"]
    own = "--trainer.callbacks.init_args.start.class_path=smartfrz_lightning.stages.StartStage"
    threshold = "--trainer.callbacks.init_args.start.init_args.threshold=0.99"
    stops = "--trainer.callbacks+={class_path: EarlyStopping, init_args: {monitor: val_loss}}"
    saved_by_fit = ["--ckpt_path=null", "--weights_only=null", stops, "--trainer.min_epochs=4"]
    plan_command(["--config=configs/quickstart.yaml", *quiet, *smaller, own, threshold, *saved_by_fit])
    out = " ".join(capsys.readouterr().out.split())
    assert "Freezing a prefix of ImageClassifier from the start" in out and "49" in out
    assert "has to be 0.99" in out  # of the config's own start stage
