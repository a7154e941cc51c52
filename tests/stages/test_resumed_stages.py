"""A run that is resumed in whatever stage, outside of a probe or a trial, ends bit for bit as the whole one."""

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from staging import ANYWAY, EPOCHS, LONG, NEVER, OPTIMIZERS, InOrder, Safe, later, probing, quiet_mlp, same, smart

from smartfrz_lightning import SmartFreezeCallback
from smartfrz_lightning.stages import StartStage, VerifyStage


def part_stays():
    """One of two layers stays after two fifths, and nothing is asked of it again."""
    return smart(later=later(3.0, 1.0, 1.0, until=0.45), verdict=ANYWAY, schedule=LONG)


RUNS = {
    "behind the probe": (probing, (5, 6, 12)),
    "the prefix stays": (lambda: smart(verdict=ANYWAY), (11, 24, 60)),
    "the shadow weights are adopted": (lambda: smart(verdict=NEVER), (11, 24, 60)),
    "around two fifths": (part_stays, (40, 50, 80)),
    "with a budget": (lambda: SmartFreezeCallback(StartStage(Safe()), VerifyStage(**NEVER), save=0.3), (10, 40, 100)),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_is_the_same(make_trainer, tmp_path, run):
    make, steps = RUNS[run]
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole, freezer = InOrder(quiet_mlp(), OPTIMIZERS["adamw"]), make()
    make_trainer(freezer, every, max_epochs=EPOCHS, enable_checkpointing=True).fit(whole)
    assert freezer.timeline.events
    for step in steps:
        again, resumed = InOrder(quiet_mlp(), OPTIMIZERS["adamw"]), make()
        make_trainer(resumed, max_epochs=EPOCHS).fit(again, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
        assert same(whole, again) and again.losses == whole.losses[step:], step
        assert resumed.timeline.events == freezer.timeline.events, step
