"""What the start predictor sees, and the file that it lives in."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from smartfrz_lightning.predictor.start import INPUTS, StartPredictor, start_inputs
from smartfrz_lightning.stages.start import choose_prefix


def some(layers=6, batches=4, seed=0):
    torch.manual_seed(seed)
    return torch.randn(batches, layers, 32), torch.randn(layers, 32), torch.ones(layers + 1)


def named(inputs):
    return dict(zip(INPUTS, inputs.T, strict=True))


@given(seed=st.integers(0, 999), loss=st.floats(0.01, 100), layer=st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_units_do_not_matter(seed, loss, layer):
    gradients, weights, sizes = some(seed=seed)
    plain = start_inputs(gradients, weights, sizes)
    # Another unit of the loss moves all layers alike.
    assert torch.allclose(start_inputs(gradients * loss, weights, sizes), plain, atol=1e-4)
    # Weights twice as large with gradients twice as large want to move as much.
    assert torch.allclose(start_inputs(gradients * layer, weights * layer, sizes), plain, atol=1e-4)


@given(seed=st.integers(0, 999), layers=st.integers(1, 12), batches=st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_of_any_network_there_are_finite_numbers(seed, layers, batches):
    gradients, weights, sizes = some(layers, batches, seed)
    gradients[:, 0] = 0  # a layer that no batch reached
    weights[-1] = 0
    inputs = start_inputs(gradients, weights, sizes)
    assert inputs.shape == (layers, len(INPUTS)) and inputs.isfinite().all()
    assert (named(inputs)["depth"].diff() > 0).all()


def test_a_prefix_whose_gradients_are_small_stands_out():
    gradients, weights, sizes = some()
    gradients[:, :3] *= 0.01
    front_to_all = named(start_inputs(gradients, weights, sizes))["front_to_all"]
    assert front_to_all[2] < -1.5 and abs(front_to_all[-1]) < 1e-5


def test_the_shipped_predictor_wants_a_gentle_prefix_and_not_all_of_the_body():
    predictor = StartPredictor.load()

    def safe(front, shift=0.0):
        gradients, weights, sizes = some(layers=20)
        gradients[:, :12] *= front
        return predictor(start_inputs(gradients, weights, sizes, shift)).sigmoid()

    gentle, wild = safe(0.3), safe(3.0)
    assert (gentle[:12] > wild[:12]).all() and gentle[11] > 0.7 and gentle[19] < 0.5
    assert torch.equal(safe(0.3, shift=0.1), gentle) and (safe(0.3, shift=3.0) < gentle).all()  # it has a floor


def test_a_file_holds_the_predictor(tmp_path):
    path = tmp_path / "mine.safetensors"
    predictor = StartPredictor(shift_floor=-1.0)
    predictor.mean += 1.0
    predictor.save(path, cases=3)
    inputs = torch.rand(5, len(INPUTS)) - 2
    assert torch.equal(StartPredictor.load(path)(inputs), predictor(inputs))


@given(
    fronts=st.lists(st.tuples(st.floats(0.1, 1), st.floats(0, 1)), min_size=1, max_size=9), share=st.floats(0.01, 0.99)
)
@settings(max_examples=100, deadline=None)
def test_what_is_chosen_is_what_was_asked_for(fronts, share):
    costs, sure = [list(column) for column in zip(*fronts, strict=True)]
    held = choose_prefix(costs, sure, threshold=share)
    able = [cost for cost, likelihood in fronts if likelihood >= share]
    assert (held == 0) == (not able) and (not held or costs[held - 1] == min(able))
    able = [(cost, likelihood) for cost, likelihood in fronts if likelihood >= 0.5]
    enough = [likelihood for cost, likelihood in able if cost <= 1 - share + 1e-9]
    held = choose_prefix(costs, sure, threshold=0.5, save=share)
    assert sure[held - 1] == max(enough) if enough else held == choose_prefix(costs, sure, threshold=0.5)
    assert not enough or costs[held - 1] <= 1 - share + 1e-9
