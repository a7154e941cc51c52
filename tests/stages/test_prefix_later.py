"""What the later stage decides, after two fifths of a long run, of a prefix that was frozen from the start."""

import pytest
from models import Classifier, Endless, mlp
from staging import (
    ANYWAY,
    EPOCHS,
    FROZEN,
    LONG,
    ONE_LAYER,
    OPTIMIZERS,
    Safe,
    later,
    notes,
    smart,
    trained,
)


@pytest.mark.parametrize(
    ("predictor", "stage", "events"),
    [
        (Safe(), later(9.0, 9.0, 9.0, progress=0.45), ["+0 2", "+4 2", "-0 48", "-4 48", "+0 72", "+4 72"]),
        (ONE_LAYER, later(3.0, 2.0, 2.0), ["+0 2", "+4 54"]),
        (Safe((1.1, 3.0)), later(9.0, 9.0, 9.0), ["+0 2", "+4 2"]),
        (Safe(), False, ["+0 2", "+4 2"]),
    ],
    ids=["what trains again does so for a fifth", "deeper layers follow", "two thirds at most", "no later stage"],
)
def test_what_becomes_of_a_prefix(make_trainer, predictor, stage, events):
    freezer = smart(predictor, later=stage, verdict=ANYWAY, schedule=LONG)
    make_trainer(freezer, max_epochs=EPOCHS, limit_val_batches=0).fit(Classifier(trained(mlp()), OPTIMIZERS["sgd"]))
    signs = {"freeze": "+", "thaw": "-"}
    found = [f"{signs[event.kind]}{event.layer[4:]} {event.step}" for event in freezer.timeline.events]
    assert found == events


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


def test_a_further_fit_of_the_same_model_asks_again(make_trainer):
    freezer, model = smart(later=later(-9.0, -9.0, -9.0), verdict=ANYWAY, schedule=LONG), Classifier(trained(mlp()))
    for number in (1, 2):
        make_trainer(freezer, max_epochs=EPOCHS, limit_val_batches=0).fit(model)
        thawed = [event.step for event in freezer.timeline.events if event.kind == "thaw"]
        assert thawed[-2:] == [48 + 120 * (number - 1)] * 2 and freezer.frozen == []


def test_data_without_a_loader_length_counts_as_a_long_run(make_trainer):
    freezer = smart(probe=3, schedule=LONG, verdict=ANYWAY, later=later(-9.0, -9.0, -9.0))
    make_trainer(freezer, max_epochs=-1, max_time="00:00:00:04", limit_val_batches=0).fit(Endless(trained(mlp())))
    # Two fifths of the length that counts as long.
    assert "stay frozen after 44 steps: p(safe) is not known" in notes(freezer)
