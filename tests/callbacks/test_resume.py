"""A run that was stopped and resumed ends bit for bit as the uninterrupted one."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, mlp, scheduled
from scripted import ScriptedFreeze
from staging import Batches
from torch.utils.data import DataLoader

from smartfrz_lightning import (
    AttentionFreezeCallback,
    AutoFreezeCallback,
    BudgetFreezeCallback,
    GradESFreezeCallback,
    GradientNormFreezeCallback,
    IntervalFreezeCallback,
    LinearFreezeCallback,
    MovementFreezeCallback,
    RandomFreezeCallback,
    SimilarityFreezeCallback,
    StaticFreezeCallback,
)


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)


class Seeded(Classifier):
    """Dropout depends on the step alone, so that a resumed run can draw the same."""

    def __init__(self):
        super().__init__(mlp(), scheduled(cosine, lambda p: torch.optim.AdamW(p, lr=1e-2), "step"))

    def train_dataloader(self):
        return Batches(self)

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(self.global_step)


class Unscheduled(Seeded):
    def __init__(self):
        super().__init__()
        self.make = lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9)


class Killed(Exception):
    pass


class Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed


METHODS = {
    "smart": lambda: AttentionFreezeCallback(threshold=0.3, every_n_epochs=1, snapshot_every_n_steps=1),
    "by step": lambda: AttentionFreezeCallback(
        front_only=True, threshold=0.3, every_n_train_steps=5, window=6, snapshot_every_n_steps=1
    ),
    "scripted": lambda: ScriptedFreeze({3: [0], 11: [2], 19: [1]}),
    "thawing": lambda: ScriptedFreeze({3: [0, 1], 18: [0]}, thaw={13: [0]}),
}
OTHERS = {
    "linear": lambda: LinearFreezeCallback(t_0=0.3),
    "auto": lambda: AutoFreezeCallback(evaluations_per_epoch=2, percentile=70),
    "gradient norm": lambda: GradientNormFreezeCallback(alpha=0.5),
    "similarity": lambda: SimilarityFreezeCallback("reference.ckpt", epsilon=0.02),
    "interval": lambda: IntervalFreezeCallback(flops_reduction=0.2),
    "static": lambda: StaticFreezeCallback(layers=2),
    "movement": lambda: MovementFreezeCallback(threshold=0.12, window=8, snapshot_every_n_steps=1),
    "grades": lambda: GradESFreezeCallback(tau=3.0, grace=0.3),
    "budget": lambda: BudgetFreezeCallback(budget=0.6),
    "random": lambda: RandomFreezeCallback("given.csv"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("save", "kill"),
    [
        ({"every_n_train_steps": 13}, 15),  # mid-epoch
        ({"every_n_train_steps": 4}, 17),  # at an epoch's last step, before its check
        (
            {"monitor": "val_loss", "save_top_k": -1, "save_on_train_epoch_end": False},
            18,
        ),  # after validation, before the epoch's check
        ({"save_on_train_epoch_end": True}, 20),  # after the epoch's check
    ],
)
def test_resume_is_bitwise_equal(make_trainer, tmp_path, method, save, kill):
    check_resume(make_trainer, tmp_path, METHODS[method], save, kill)


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize(("save", "kill"), [({"every_n_train_steps": 13}, 15), ({"save_on_train_epoch_end": True}, 20)])
def test_every_method_resumes_bitwise_equal(make_trainer, tmp_path, monkeypatch, method, save, kill):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Seeded().state_dict()}, "reference.ckpt")
    Path("given.csv").write_text("layer,step\nnet.0,6\nnet.4,18\nnet.7,30\nnet.9,\n")
    module = Unscheduled if method == "linear" else Seeded
    check_resume(make_trainer, tmp_path, OTHERS[method], save, kill, module)


def check_resume(make_trainer, tmp_path, method, save, kill, module=Seeded):
    whole, freezer = module(), method()
    make_trainer(freezer, max_epochs=5).fit(whole)
    assert freezer.frozen, "nothing froze: the comparison would show nothing"

    checkpoint = ModelCheckpoint(tmp_path / "saved", **save)
    with pytest.raises(Killed):
        make_trainer(method(), checkpoint, Kill(kill), max_epochs=5, enable_checkpointing=True).fit(module())
    path = max((tmp_path / "saved").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)

    resumed, again = module(), method()
    make_trainer(again, max_epochs=5).fit(resumed, ckpt_path=path, weights_only=True)
    assert resumed.losses == whole.losses[-len(resumed.losses) :] and len(resumed.losses) < len(whole.losses)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert again.timeline.events == freezer.timeline.events
    assert again.timeline.steps == freezer.timeline.steps
    assert again.timeline.spent == freezer.timeline.spent


def test_similarity_goes_on_measuring_after_a_resume_between_two_epochs(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Seeded().state_dict()}, "reference.ckpt")
    every = ModelCheckpoint(tmp_path / "saved", "{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
    whole, again = OTHERS["similarity"](), OTHERS["similarity"]()
    make_trainer(whole, every, max_epochs=5, enable_checkpointing=True).fit(Seeded())
    last = whole.timeline.events[-1].step
    assert last >= 16
    saved = tmp_path / "saved" / f"epoch={last // 8 - 2}.ckpt"
    make_trainer(again, max_epochs=5).fit(Seeded(), ckpt_path=saved)
    assert again.timeline.events == whole.timeline.events


@pytest.mark.parametrize(("before", "after"), [((), "net.4"), ("net.4", ())], ids=["added", "taken away"])
def test_windows_of_what_is_excluded_on_resume(make_trainer, tmp_path, before, after):
    def made(exclude):
        return AttentionFreezeCallback(threshold=0.3, every_n_epochs=1, snapshot_every_n_steps=1, exclude=exclude)

    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    make_trainer(made(before), every, max_epochs=5, enable_checkpointing=True).fit(Seeded())
    again = made(after)
    make_trainer(again, max_epochs=6).fit(Seeded(), ckpt_path=tmp_path / "step=4.ckpt")
    assert again.frozen and ("net.4" in again.frozen) == (after == ())


def test_fit_twice_goes_on_and_another_model_starts_afresh(make_trainer):
    freezer, model = ScriptedFreeze({2: [0]}), Classifier(mlp())
    make_trainer(freezer, max_epochs=1).fit(model)
    weight = model.net[0].weight.clone()
    make_trainer(freezer, max_epochs=1).fit(model)
    assert freezer.frozen == ["net.0"] and freezer.timeline.steps == 16
    assert torch.equal(weight, model.net[0].weight)
    other = Classifier(mlp())
    make_trainer(freezer, max_epochs=1).fit(other)
    assert freezer.timeline.steps == 8 and freezer.timeline.events[0].step == 2


def test_an_epoch_that_was_saved_at_its_last_step_is_checked_after_the_resume(make_trainer, tmp_path):
    def fit(*callbacks, **how):
        model, freezer = Unscheduled(), GradientNormFreezeCallback(alpha=0.5)
        make_trainer(freezer, *callbacks, max_epochs=6, enable_checkpointing=True).fit(model, **how)
        return model, [(event.layer, event.step) for event in freezer.timeline.events]

    whole, events = fit(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1))
    resumed, again = fit(ckpt_path=tmp_path / f"step={events[0][1]}.ckpt")
    assert again == events and events[0][1] % 8 == 0
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_checkpoint_of_another_model_or_version_is_refused(make_trainer, tmp_path):
    freezer = ScriptedFreeze({2: [0]})
    make_trainer(freezer, max_epochs=1).fit(Classifier(mlp()))
    state = freezer.state_dict()
    with pytest.raises(ValueError, match="state version 0"):
        ScriptedFreeze({}).load_state_dict({**state, "version": 0})
    other = ScriptedFreeze({})
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="another model"):
        make_trainer(other).fit(Classifier(torch.nn.Linear(12, 3)))


def test_validation_test_and_prediction_alone_leave_the_model_alone(make_trainer):
    model, freezer = Classifier(mlp()), ScriptedFreeze({2: [0]})
    model.test_step = model.validation_step
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = make_trainer(freezer)
    trainer.validate(model, verbose=False)
    trainer.test(model, dataloaders=model.val_dataloader(), verbose=False)
    trainer.predict(model, DataLoader(torch.randn(4, 12)))
    assert all(parameter.requires_grad for parameter in model.parameters()) and not freezer.layers
    torch.testing.assert_close(before, model.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_that_was_validated_is_none_to_resume_from(make_trainer, tmp_path):
    freezer = ScriptedFreeze({2: [0]})
    trainer = make_trainer(freezer, max_epochs=1)
    trainer.fit(Classifier(mlp()))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again, model = ScriptedFreeze({}), Classifier(mlp(seed=1))
    make_trainer(again).validate(model, ckpt_path=tmp_path / "end.ckpt", verbose=False)
    make_trainer(again, max_epochs=1).fit(Classifier(mlp(seed=2)))
    assert not again.frozen and again.timeline.steps == 8


def test_an_earlier_checkpoint_thaws_what_froze_later_in_the_same_model(make_trainer, tmp_path):
    script = {2: [0], 12: [1]}
    whole, other = Classifier(mlp()), Classifier(mlp())
    for parameter in (*whole.net[7].parameters(), *other.net[7].parameters()):
        parameter.requires_grad = False  # the user's own
    saved = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    make_trainer(ScriptedFreeze(script), saved, max_epochs=3, enable_checkpointing=True).fit(whole)
    again = ScriptedFreeze({})
    torch.manual_seed(0)
    make_trainer(again, max_epochs=3).fit(whole, ckpt_path=tmp_path / "epoch=0.ckpt")
    trains = [index for index in (0, 4, 7, 9) if whole.net[index].weight.requires_grad]
    assert again.frozen == ["net.0"] and trains == [4, 9] and whole.net[5].training
    torch.manual_seed(0)
    make_trainer(ScriptedFreeze({}), max_epochs=3).fit(other, ckpt_path=tmp_path / "epoch=0.ckpt")
    for one, two in zip(whole.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)
