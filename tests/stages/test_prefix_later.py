"""What the later stage decides, after two fifths of a long run, of a prefix that was frozen from the start."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, mlp
from staging import (
    ANYWAY,
    EPOCHS,
    FROZEN,
    LONG,
    ONE_LAYER,
    OPTIMIZERS,
    InOrder,
    Safe,
    later,
    notes,
    quiet_mlp,
    same,
    smart,
    trained,
)
from torch.utils.data import DataLoader


def test_what_trains_again_trains_for_a_fifth_of_the_run_before_it_freezes(make_trainer):
    freezer = smart(Safe(), later=later(9.0, 9.0, 9.0, progress=0.45), verdict=ANYWAY, schedule=LONG)
    make_trainer(freezer, max_epochs=15, limit_val_batches=0).fit(Classifier(trained(mlp()), OPTIMIZERS["sgd"]))
    events = [(event.kind, event.layer, event.step) for event in freezer.timeline.events]
    assert events[2:] == [
        ("thaw", "net.0", 48),
        ("thaw", "net.4", 48),
        ("freeze", "net.0", 72),
        ("freeze", "net.4", 72),
    ]


@pytest.mark.parametrize(
    ("odds", "thawed"),
    [((3.0, 2.0, 2.0), []), ((3.0, 1.0, 3.0), FROZEN[1:]), ((1.0, 3.0, 3.0), FROZEN), ((1.7, 1.7, 1.7), FROZEN)],
)  # p(safe) has to be 0.85, log-odds 1.73
def test_what_is_safe_of_a_prefix_stays_frozen_after_two_fifths(make_trainer, odds, thawed):
    freezer, model = smart(later=later(*odds), verdict=ANYWAY, schedule=LONG), Classifier(trained(mlp()))
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    make_trainer(freezer, max_epochs=EPOCHS, limit_val_batches=0).fit(model)
    assert [(event.layer, event.step) for event in freezer.timeline.events if event.kind == "thaw"] == [
        (name, 48) for name in thawed
    ]
    stay = f"{2 - len(thawed)} of the 2 layers that were frozen from the start stay frozen after 48 steps"
    assert stay in notes(freezer)
    for layer in freezer.layers[:2]:
        still = layer.name not in thawed
        assert all(model.get_parameter(name).equal(before[name]) == still for name in layer.parameters)


@pytest.mark.parametrize("step", [40, 50, 80])
def test_a_run_that_is_resumed_around_two_fifths_is_the_same(make_trainer, tmp_path, step):
    def how():
        stage = later(3.0, 1.0, 1.0, until=0.45)  # one of two layers stays, and nothing is asked of it again
        return InOrder(quiet_mlp(), OPTIMIZERS["adamw"]), smart(later=stage, verdict=ANYWAY, schedule=LONG)

    (whole, freezer), (again, resumed) = how(), how()
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=10, save_top_k=-1)
    make_trainer(freezer, every, max_epochs=EPOCHS, enable_checkpointing=True).fit(whole)
    make_trainer(resumed, max_epochs=EPOCHS).fit(again, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    assert same(whole, again) and again.losses == whole.losses[step:]
    assert resumed.timeline.events == freezer.timeline.events and resumed.frozen == FROZEN[:1]


def test_deeper_layers_freeze_behind_what_stayed(make_trainer):
    freezer = smart(ONE_LAYER, later=later(3.0, 2.0, 2.0), verdict=ANYWAY, schedule=LONG)
    make_trainer(freezer, max_epochs=EPOCHS, limit_val_batches=0).fit(Classifier(trained(mlp())))
    assert [(event.layer, event.step) for event in freezer.timeline.events] == [("net.0", 2), ("net.4", 54)]


def test_without_a_later_stage_a_prefix_stays(make_trainer):
    freezer = smart(later=False, verdict=ANYWAY, schedule=LONG)
    make_trainer(freezer, max_epochs=EPOCHS, limit_val_batches=0).fit(Classifier(trained(mlp())))
    assert freezer.frozen == FROZEN


def test_a_further_fit_of_the_same_model_asks_again(make_trainer):
    freezer, model = smart(later=later(-9.0, -9.0, -9.0), verdict=ANYWAY, schedule=LONG), Classifier(trained(mlp()))
    for number in (1, 2):
        make_trainer(freezer, max_epochs=EPOCHS, limit_val_batches=0).fit(model)
        thawed = [event.step for event in freezer.timeline.events if event.kind == "thaw"]
        assert thawed[-2:] == [48 + 120 * (number - 1)] * 2 and freezer.frozen == []


def test_a_prefix_deeper_than_two_thirds_is_cut(make_trainer):
    freezer = smart(Safe((1.1, 3.0)), later=later(9.0, 9.0, 9.0), verdict=ANYWAY, schedule=LONG)
    make_trainer(freezer, max_epochs=EPOCHS, limit_val_batches=0).fit(Classifier(trained(mlp())))
    assert freezer.frozen == FROZEN and "2 of the 3 layers" in notes(freezer)


def test_data_without_a_loader_length_counts_as_a_long_run(make_trainer):
    class Stream(Classifier):
        def train_dataloader(self):
            from torch.utils.data import IterableDataset

            class Endless(IterableDataset):
                def __iter__(self):
                    while True:
                        yield from [(torch.randn(12), torch.tensor(1))]

            return DataLoader(Endless(), 8)

    freezer = smart(probe=3, schedule=LONG, verdict=ANYWAY, later=later(-9.0, -9.0, -9.0))
    make_trainer(freezer, max_epochs=-1, max_time="00:00:00:04", limit_val_batches=0).fit(Stream(trained(mlp())))
    # Two fifths of the length that counts as long.
    assert "stay frozen after 44 steps: p(safe) is not known" in notes(freezer)
