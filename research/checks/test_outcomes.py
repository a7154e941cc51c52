"""Small checks of the research code; not a part of the default suite: ``python -m pytest research/checks``."""

import torch

from research.outcomes.case import Case
from research.outcomes.examples import example, frontier, load_examples
from research.outcomes.networks import build
from research.outcomes.outcome import Outcome, Run, one_after_another
from research.outcomes.probe import probe_gradients
from research.outcomes.training import train
from smartfrz_lightning.layers import find_layers

CASE = Case("vgg8", "", "own", (0, 1), 8, "none", True, "sgd", 0.02, "cosine", 4, 4, 1)


def data():
    return torch.rand(8, 3, 32, 32), torch.arange(8) % 2


def test_a_training_that_is_restored_ends_as_it_did():
    net, images = build("vgg8", 2), data()
    [kept] = train(CASE, net, images, keep=[2])
    finished = net[0].weight.clone()
    train(CASE, net, images, moment=kept)
    assert net[0].weight.equal(finished)


def test_a_probe_records_every_layer():
    net, images = build("vgg8", 2), data()
    layers = find_layers(net, images[0][:2])
    assert probe_gradients(CASE, net, layers, images, 3, True)["gradients"].shape == (3, 8, 1024)


def test_an_outcome_is_read_as_it_was_written(tmp_path):
    step = one_after_another([{"layer": "stem", "own": 10}, {"layer": "head", "own": 10}])
    runs = [Run("full", 0.5, 80.0, 100), Run("frozen", 0.4, 82.0, 100, depth=1)]
    Outcome(CASE, ["stem", "head"], [1, 1], step, runs, {}).save(tmp_path / "one.safetensors")
    again = Outcome.load(tmp_path / "one.safetensors")
    assert again.runs == runs and again.cost(runs[1]) == 0.6


def test_the_recorded_cases_are_read():
    cases = load_examples("research/results/held_out.jsonl")
    assert "resnet32" in {one.family for one in cases} and cases[0].inputs.shape[1] == 5
    assert frontier(cases[0].outcome, 0.3) <= frontier(cases[0].outcome, 1.0)
    outcome = cases[0].outcome
    probe = torch.randn(30, len(outcome.layers), 16)
    outcome.tensors = {"probe_train_gradients": probe, "weights": torch.ones_like(probe)}
    assert example(outcome, probe_steps=4).inputs.shape == (len(outcome.layers) - 1, 5)
