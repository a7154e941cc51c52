"""What becomes of a frozen prefix after a trial, and when there is none."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from models import scheduled
from staging import (
    ANYWAY,
    EPOCHS,
    LONG,
    NEVER,
    NOTHING,
    OPTIMIZERS,
    InOrder,
    Safe,
    fitted,
    notes,
    quiet_mlp,
    same,
    smart,
    trained,
)
from torch import nn

from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.stages.verify import VerifyStage, likely_part, prefix_stays


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


def test_a_prefix_stays_if_the_loss_is_higher_by_half_a_standard_error():
    gains = (-0.02, -0.006, -0.004, 0.0, 0.02)
    assert [prefix_stays(gain, 0.01, VerifyStage().bound) for gain in gains] == [True, True, *3 * [False]]
    assert [prefix_stays(gain, math.nan, 0.5) for gain in (-math.inf, math.inf, math.nan)] == [True, False, True]
    assert not prefix_stays(-1.0, math.inf, 0.5)


def test_the_likely_part_of_a_prefix_ends_with_the_last_layer_that_is_safe_enough():
    assert likely_part([0.9, 0.7, 0.85, 0.6]) == 3 and likely_part([0.6]) == 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_released_in_a_long_run_has_missed_nothing_but_the_probe(make_trainer, accumulate):
    def make():
        return InOrder(quiet_mlp(), OPTIMIZERS["adamw"])

    how = {"max_epochs": EPOCHS * accumulate, "accumulate_grad_batches": accumulate}
    model, freezer, _ = fitted(make_trainer, make, smart(verdict=NEVER, schedule=LONG), **how)
    other, *_ = fitted(make_trainer, make, smart(NOTHING, schedule=LONG), **how)
    assert "Trial, steps 2 to 14" in notes(freezer)
    assert same(model, other) and model.losses[14 * accumulate :] == other.losses[14 * accumulate :]


def test_a_run_that_ends_within_the_trial_says_so(make_trainer):
    class Enough(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 16

    _, freezer, _ = fitted(make_trainer, InOrder, smart(verdict=NEVER), Enough())
    assert freezer.frozen and "The trial was cut short after 16 steps" in notes(freezer)


@pytest.mark.parametrize(("until", "begin"), [(1, 2), (8, 8), (60, 12)])
def test_the_trial_waits_for_the_learning_rate(make_trainer, until, begin):
    def warming_up(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / until))

    freezer = smart(verdict=ANYWAY, schedule=LONG)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(optimizer=scheduled(warming_up, interval="step")))
    assert f"Trial, steps {begin} to {begin + 12}" in notes(freezer)


def test_a_run_is_as_long_as_it_is_whatever_progress_rounds_to():
    run = TrainingRun(nn.Identity(), steps=22, progress=22 / 120)
    assert run.steps / run.progress > run.total_steps == 120
