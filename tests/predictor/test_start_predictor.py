"""What the start predictor sees, and the file that it lives in."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.start_inputs import INPUTS, start_inputs
from smartfrz_lightning.stages.start import choose_prefix, probe_length


def some(layers=6, batches=4, seed=0):
    torch.manual_seed(seed)
    gradients, weights = torch.randn(batches, layers, 32), torch.randn(layers, 32)
    return gradients, weights, torch.linspace(0.9, 0.3, layers), torch.ones(layers + 1)


def named(inputs):
    return dict(zip(INPUTS, inputs.T, strict=True))


@given(seed=st.integers(0, 999), loss=st.floats(0.01, 100), layer=st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_units_do_not_matter(seed, loss, layer):
    gradients, weights, *rest = some(seed=seed)
    plain = start_inputs(gradients, weights, *rest, steps=100)
    # Another unit of the loss moves the level alone, and not how layers lie to each other.
    scaled = named(start_inputs(gradients * loss, weights, *rest, steps=100))
    for name, column in named(plain).items():
        expected = column + torch.tensor(loss).log() if name == "front" else column
        assert torch.allclose(scaled[name], expected, atol=1e-4), name
    # Weights twice as large with gradients twice as large want to move as much.
    both = start_inputs(gradients * layer, weights * layer, *rest, steps=100)
    assert torch.allclose(both, plain, atol=1e-4)


@given(seed=st.integers(0, 999), layers=st.integers(1, 12), batches=st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_of_any_network_there_are_finite_numbers(seed, layers, batches):
    gradients, weights, *rest = some(layers, batches, seed)
    gradients[:, 0] = 0  # a layer that no batch reached
    weights[-1] = 0
    inputs = start_inputs(gradients, weights, *rest, steps=100)
    assert inputs.shape == (layers, len(INPUTS)) and inputs.isfinite().all()
    columns = named(inputs)
    assert (columns["depth"].diff() > 0).all() and columns["body"].tolist() == [0] * (layers - 1) + [1]
    for name in ("front_agrees", "back_agrees"):
        assert (columns[name] >= 0).all() and (columns[name] <= 1).all()


def test_a_front_whose_gradients_are_small_stands_out():
    gradients, weights, *rest = some()
    gradients[:, :3] *= 0.01
    front_to_all = named(start_inputs(gradients, weights, *rest, steps=100))["front_to_all"]
    assert front_to_all[2] < -1.5 and abs(front_to_all[-1]) < 1e-5


def test_the_shipped_predictor_wants_a_gentle_front_and_not_all_of_the_body():
    predictor = StartPredictor.load()

    def likelihoods(front):
        gradients, weights, *rest = some(layers=20)
        gradients[:, :12] *= front
        return predictor(start_inputs(gradients, weights, *rest, steps=200)).sigmoid()

    gentle, wild = likelihoods(0.3), likelihoods(3.0)
    assert (gentle[:12] > wild[:12]).all() and gentle[11] > 0.7 and gentle[19] < 0.5


def test_attention_lets_fronts_know_of_each_other():
    inputs = start_inputs(*some(), steps=100)
    other = inputs.clone()
    other[-1] += 1
    for hidden, same in ((0, True), (8, False)):
        torch.manual_seed(0)
        predictor = StartPredictor(hidden=hidden, heads=2).eval()
        assert torch.equal(predictor(inputs)[:-1], predictor(other)[:-1]) == same


def test_a_file_says_what_it_is(tmp_path):
    path = tmp_path / "mine.safetensors"
    predictor = StartPredictor(["depth", "steps"], hidden=8, heads=2)
    predictor.mean += 1.0
    predictor.save(path, cases=3)
    again = StartPredictor.load(path)
    inputs = torch.rand(5, len(INPUTS))
    assert torch.allclose(again(inputs), predictor.eval()(inputs)) and again.inputs == ["depth", "steps"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is cut short or not a safetensors file"):
        StartPredictor.load(path)
    with pytest.raises(FileNotFoundError, match="no such file; leave it out"):
        StartPredictor.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"inputs=\['colour'\]: not among depth"):
        StartPredictor(["colour"])
    with pytest.raises(ValueError, match="gradients of 1 batches: at least 2"):
        start_inputs(*some(batches=1), steps=100)


@given(
    fronts=st.lists(st.tuples(st.floats(0.1, 1), st.floats(0, 1)), min_size=1, max_size=9), share=st.floats(0.01, 0.99)
)
@settings(max_examples=100, deadline=None)
def test_what_is_chosen_is_what_was_asked_for(fronts, share):
    costs, sure = [list(column) for column in zip(*fronts, strict=True)]
    held = choose_prefix(costs, sure, threshold=share)
    able = [cost for cost, likelihood in fronts if likelihood >= share]
    assert (held == 0) == (not able) and (not held or costs[held - 1] == min(able))
    held = choose_prefix(costs, sure, threshold=0.5, save=share)
    able = [likelihood for cost, likelihood in fronts if cost <= 1 - share + 1e-9]
    assert sure[held - 1] == max(able) if able else costs[held - 1] == min(costs)


def test_the_length_of_a_probe():
    assert [probe_length(steps) for steps in (0, 99, 100, 1499, 1500, 10**6)] == [0, 1, 2, 29, 30, 30]
