"""What used to do nothing without a word: it works, or says so before training."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from models import Classifier, Manual, mlp, still
from scripted import FreezeNext, ScriptedFreeze
from torch import nn
from torch.utils.data import DataLoader

from smartfrz_lightning import (
    AttentionFreezeCallback,
    IntervalFreezeCallback,
    LinearFreezeCallback,
    MovementFreezeCallback,
)


class TiedLanguageModel(LightningModule):
    """Predicts the next token with the embedding's own weights, as most language models do."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def training_step(self, ids, batch_idx):
        x = self.embedding(ids[:, :-1])
        for block in self.blocks:
            x = x + block(x).relu()
        return nn.functional.cross_entropy((x @ self.embedding.weight.T).flatten(0, 1), ids[:, 1:].flatten())

    def configure_optimizers(self):
        return still(self.parameters())

    def train_dataloader(self):
        return DataLoader(torch.randint(20, (60, 7), generator=torch.Generator().manual_seed(0)), 8)


@pytest.mark.parametrize("method", [AttentionFreezeCallback, MovementFreezeCallback])
def test_a_language_model_with_tied_weights_freezes(make_trainer, method):
    freezer = method(snapshot_every_n_steps=1, every_n_train_steps=4, window=4, front_only=True)
    make_trainer(freezer, limit_val_batches=0).fit(TiedLanguageModel())
    assert freezer.layers[0].always_trains == "output"
    assert freezer.frozen == ["blocks.0", "blocks.1", "blocks.2"] and freezer.timeline.saved > 0.1


def test_a_run_of_a_single_epoch_is_checked(make_trainer):
    freezer = AttentionFreezeCallback(threshold=0.9, front_only=True)
    make_trainer(freezer, max_epochs=1, limit_val_batches=0).fit(Classifier(mlp(norm=False), still, size=300))
    assert freezer.frozen == ["net.0", "net.4", "net.7"] and 0.1 < freezer.timeline.saved < 0.7


WAYS = {
    "own accumulation": (lambda: Manual(mlp(norm=False), every=4), {}, 2),
    "two steps a batch": (lambda: Manual(mlp(norm=False), times=2), {}, 8),
    "past Lightning's optimizer": (lambda: Manual(mlp(norm=False), raw=True), {}, 8),
    "a schedule of accumulation": (lambda: Classifier(mlp(norm=False)), {"scheduled": True}, None),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_length_of_a_run_is_right_however_it_steps(make_trainer, way):
    make, how, steps_per_epoch = WAYS[way]
    callbacks = [GradientAccumulationScheduler({0: 4, 4: 1})] if how else []
    freezer, epochs = IntervalFreezeCallback(flops_reduction=0.3), 10
    make_trainer(freezer, *callbacks, max_epochs=epochs, limit_val_batches=0).fit(make())
    assert freezer.timeline.saved == pytest.approx(0.3, abs=0.02)
    if steps_per_epoch:
        assert freezer.timeline.steps == epochs * steps_per_epoch
        for event in freezer.timeline.events:
            assert event.epoch == pytest.approx(event.step / steps_per_epoch)

    freezer, model = LinearFreezeCallback(t_0=0.5), make()
    trainer = make_trainer(freezer, *[type(c)({0: 4, 4: 1}) for c in callbacks], max_epochs=epochs, limit_val_batches=0)
    trainer.fit(model)
    assert freezer.frozen == ["net.0", "net.4", "net.7"]
    moments = [event.epoch / epochs for event in freezer.timeline.events]
    assert moments == pytest.approx([1 / 2, 2 / 3, 5 / 6], abs=0.04)
    rate = next(g["lr"] for o in trainer.optimizers for g in o.param_groups if g["layer"] == "net.9")
    assert rate < 0.001  # of 0.05, and falling to zero


def test_steps_and_epochs_of_events_are_those_of_lightning(make_trainer):
    class Watch(ScriptedFreeze):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            before = len(self.timeline.events)
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            for event in self.timeline.events[before:]:
                epoch = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
                assert (event.step, event.epoch) == (trainer.global_step, epoch)
                self.checked += 1

    freezer = Watch({3: [0], 7: [1], 12: [2]}, {9: [0]})
    freezer.checked = 0
    make_trainer(freezer, accumulate_grad_batches=2, max_epochs=4).fit(Classifier(mlp(), size=53))  # seven batches
    assert freezer.checked == 4


def test_nothing_freezes_when_the_run_is_over(make_trainer):
    class Stops(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 16

    for callbacks, how in (([], {"max_epochs": 2}), ([], {"max_epochs": -1, "max_steps": 16}), ([Stops()], {})):
        freezer = FreezeNext()
        make_trainer(freezer, *callbacks, **how).fit(Classifier(mlp()))
        assert [event.step for event in freezer.timeline.events] == [8]
    freezer = FreezeNext(every_n_epochs=2)
    make_trainer(freezer, max_epochs=5).fit(Classifier(mlp()))
    assert [event.step for event in freezer.timeline.events] == [16, 32]
