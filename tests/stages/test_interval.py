"""A budget: a prefix at the start that is tried, and one layer after another for what is missing."""

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, Endless, mlp
from staging import (
    ANYWAY,
    EPOCHS,
    FROZEN,
    NEVER,
    NOTHING,
    ONE_LAYER,
    InOrder,
    Safe,
    notes,
    quiet_mlp,
    smart,
    trained,
)

from smartfrz_lightning import IntervalFreezeCallback, SmartFreezeCallback
from smartfrz_lightning.stages import LaterStage, StartStage, VerifyStage


def saving(save, predictor=None, verdict=ANYWAY):
    return SmartFreezeCallback(StartStage(predictor or Safe()), VerifyStage(**verdict), save=save)


def moments(freezer):
    return [(event.kind, event.step) for event in freezer.timeline.events]


def test_a_prefix_that_saves_enough_stays_to_the_end(make_trainer):
    freezer = saving(0.25)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder())
    assert freezer.frozen == FROZEN and moments(freezer) == [("freeze", 2)] * 2 and "Trial, steps" in notes(freezer)


@pytest.mark.parametrize(
    ("make", "predictor", "verdict"),
    [(quiet_mlp, Safe(), NEVER), (quiet_mlp, NOTHING, ANYWAY), (mlp, Safe(), ANYWAY), (quiet_mlp, ONE_LAYER, ANYWAY)],
    ids=["the trial says no", "nothing is safe", "from scratch", "the prefix saves too little"],
)
def test_what_is_missing_is_saved_by_one_layer_after_another(make_trainer, make, predictor, verdict):
    freezer = saving(0.3, predictor, verdict)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(make()))
    late = [step for kind, step in moments(freezer) if kind == "freeze" and step > 2]
    assert len(late) == len(set(late)) > 0 and "one layer after another freezes" in notes(freezer)
    assert freezer.timeline.saved == pytest.approx(0.3, abs=0.01)


def test_it_says_how_much_can_be_saved_at_most(make_trainer):
    freezer = saving(0.9, NOTHING)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder())
    most = float(notes(freezer).partition("Of the FLOPs ")[2][:4])
    assert 0.2 < most < 0.5 and freezer.timeline.saved == pytest.approx(most, abs=0.01)


def test_a_run_without_a_known_length_is_told_that_nothing_freezes_later(make_trainer):
    freezer = SmartFreezeCallback(start=False, save=0.3)
    make_trainer(freezer, limit_val_batches=0).fit(Endless(trained(mlp())))
    assert not freezer.frozen and "the length of the run has to be known" in notes(freezer)


def test_a_further_fit_of_the_same_model_is_planned_anew(make_trainer):
    freezer, model = saving(0.25), InOrder()
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
    freezer.stages["later"].save = 0.5  # two layers save 0.47 of a step
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
    assert freezer.frozen == [*FROZEN, "net.7"] and "2 layers are frozen from an earlier fit" in notes(freezer)


@pytest.mark.parametrize(
    ("save", "epochs", "batch_size", "step", "several"),
    [
        (0.35, EPOCHS, 8, 40, 1),
        (0.3, 3 * EPOCHS, 8, 40, 1),
        (0.3, 2 * EPOCHS, 8, 15, 4),
        (0.3, EPOCHS, 16, 80, 1),
        (0.3, EPOCHS, 4, 80, 1),
    ],
    ids=["saves more", "is longer", "is longer, gradients accumulate", "larger batches", "smaller batches"],
)
def test_a_resumed_run_is_planned_anew(make_trainer, tmp_path, save, epochs, batch_size, step, several):
    def made(batch_size):
        return Classifier(trained(mlp()), size=64, batch_size=batch_size)

    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    how = {"accumulate_grad_batches": several}
    make_trainer(saving(0.3, NOTHING), every, max_epochs=EPOCHS, enable_checkpointing=True, **how).fit(made(8))
    freezer = saving(save, NOTHING)
    make_trainer(freezer, max_epochs=epochs, **how).fit(made(batch_size), ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    assert freezer.timeline.saved == pytest.approx(save, abs=0.01)


def test_a_run_may_get_or_lose_its_budget_when_it_is_resumed(make_trainer, tmp_path):
    for before, after in ((smart(later=LaterStage()), saving(0.3)), (saving(0.3), smart(later=LaterStage()))):
        every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=40, save_top_k=-1, enable_version_counter=False)
        make_trainer(before, every, max_epochs=EPOCHS, enable_checkpointing=True).fit(InOrder())
        make_trainer(after, max_epochs=EPOCHS).fit(InOrder(), ckpt_path=str(tmp_path / "step=40.ckpt"))
        assert after.frozen


def test_what_is_thawed_by_hand_stays_so(make_trainer):
    class Thaws(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == EPOCHS - 2:
                freezer.thaw()

    freezer = saving(0.3, NOTHING)
    make_trainer(freezer, Thaws(), max_epochs=EPOCHS).fit(InOrder())
    assert "net.0" not in freezer.frozen


@pytest.mark.parametrize(
    "make", [lambda: SmartFreezeCallback(save=0.15), lambda: IntervalFreezeCallback(0.15, every_n_train_steps=6)]
)
def test_a_run_that_had_begun_without_it_is_planned_by_what_is_left(make_trainer, tmp_path, make):
    trainer = make_trainer(max_epochs=9)
    trainer.fit(InOrder())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    freezer = make()
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(), ckpt_path=str(tmp_path / "plain.ckpt"))
    steps = [step for _, step in moments(freezer)]
    assert len(set(steps)) == len(steps) > 1  # not all at once
    assert freezer.timeline.saved * (EPOCHS - 9) / EPOCHS == pytest.approx(0.15, abs=0.01)
