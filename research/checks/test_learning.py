"""A start predictor learns from outcomes, and rules are judged by them."""

from dataclasses import replace

import pytest
import torch
from jsonargparse import auto_cli

pytest.importorskip("sklearn")

from smartfrz_lightning.outcomes.case import Case
from smartfrz_lightning.outcomes.condense import condense
from smartfrz_lightning.outcomes.examples import example, frontier, load_examples
from smartfrz_lightning.outcomes.extend import SILENT, extend, left_out
from smartfrz_lightning.outcomes.fitting import fit, harmless, out_of_family, recorded
from smartfrz_lightning.outcomes.fronts import fronts_of
from smartfrz_lightning.outcomes.judge import grouped, interval, verdict
from smartfrz_lightning.outcomes.judge import main as judge
from smartfrz_lightning.outcomes.learn import log_loss
from smartfrz_lightning.outcomes.learn import main as learn
from smartfrz_lightning.outcomes.outcome import Outcome, Run
from smartfrz_lightning.outcomes.rules import baselines, choose, fisher, oracle, slope, static

from smartfrz_lightning.cost import LayerFlops, StepFlops
from smartfrz_lightning.predictor.start import StartPredictor

LAYERS = 10  # and a head
DEPTHS = (2, 4, 6, 8, 10)


def invented(seed, gentle, network="vgg8"):
    """A case in which holding does harm exactly where the front's gradients are large."""
    torch.manual_seed(seed)
    gradients = torch.randn(30, LAYERS + 1, 64)
    gradients[:, : LAYERS // 2] *= 0.2 if gentle else 5.0
    costs = [LayerFlops(f"layer{number}", 10) for number in range(LAYERS + 1)]
    step = StepFlops(110, 110, 100)
    runs = [Run("full", 0.5, 80.0, 200)]
    runs += [
        Run("shortened", 0.9, 80.0 - 40 * (1 - share), round(200 * share)) for share in (0.15, 0.3, 0.5, 0.7, 0.85)
    ]
    for depth in DEPTHS:
        lost = 0.0 if gentle and depth < 10 else 3.0 * depth
        runs.append(Run("frozen", 0.5 + lost / 50, 80.0 - lost, 200, depth))
    tensors = {
        "probe_train_gradients": gradients,
        "probe_train_norms": torch.linalg.norm(gradients, dim=-1),
        "weights": torch.ones(2, LAYERS + 1, 64),
    }
    case = Case(network, "some", "own", (0, 1), 100, "none", True, "sgd", 0.02, "cosine", 200, 16, seed)
    return Outcome(case, [cost.layer for cost in costs], [10] * (LAYERS + 1), costs, step, runs, tensors)


@pytest.fixture(scope="module")
def cases():
    networks = ("vgg8", "resnet20", "vit")
    return [example(invented(seed, seed % 2 == 0, networks[seed % 3])) for seed in range(24)]


def test_costs_and_points_above_the_frontier_by_hand(cases):
    one = cases[0]
    run = one.held[4]
    # Of 320: 4 of 11 weight gradients fall away, and the activation gradients up to the first that trains.
    assert one.outcome.cost(run) == pytest.approx((110 + 70 + 60) / 320)
    assert one.outcome.cost(run, cached=True) == pytest.approx((70 + 70 + 60) / 320)
    assert one.gain(run) == 0.0 and one.above(run) == pytest.approx(40 * (1 - 240 / 320), abs=0.5)
    assert frontier(one.outcome, 0.01) == pytest.approx(46.0)  # level below the shortest
    assert one.probe_steps == 4 and one.inputs.shape[0] == LAYERS
    assert harmless(one).tolist() == [1, 1, 1, 1, 0] and recorded(one).tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("hidden", [0, 16])
def test_it_learns_and_carries_over_to_other_networks(cases, hidden):
    inputs = ["depth", "depth_squared", "body", "front_to_all"]
    likelihoods = out_of_family(cases, inputs=inputs, hidden=hidden, epochs=40)
    for one, said in zip(cases, likelihoods, strict=True):
        assert choose(one, said, threshold=0.5) == (8 if one.gain(one.held[2]) == 0 else 0)
    again = fit(cases, inputs, hidden, seed=3, epochs=2)
    assert torch.equal(again(cases[0].inputs), fit(cases, inputs, hidden, seed=3, epochs=2)(cases[0].inputs))


def test_labels_that_are_all_alike_are_refused(cases):
    with pytest.raises(ValueError, match="have one label: record more cases"):
        fit(cases, tolerance=100.0)


def test_rules(cases):
    good, bad = cases[0], cases[1]
    assert [slope(good), slope(bad)] == [6, 0] and [fisher(good), fisher(bad)] == [4, 0]
    assert static(1)(good) == 4
    for by, tolerance in (("accuracy", 1.0), ("loss", 0.02), ("above", 0.0)):
        assert oracle(good, tolerance, by) >= 8
    assert oracle(bad, 1.0) == oracle(bad, 0.02, "loss") == 0
    judged = verdict(static(3), [good, good])
    assert judged.gain == (0.0, 0.0) and judged.harmless == 1 and judged.above[0] > 10
    assert verdict(static(3), [bad]).harmless == 0
    assert set(baselines({"shipped": StartPredictor.load()}, [0.8])) >= {
        "nothing held",
        "shipped, 0.8",
        "slope below 0.8",
    }
    assert set(grouped(cases, lambda one: one.family)) == {"vgg8", "resnet20", "vit"}
    assert interval([1.0])[0] == 1.0


def shifted(seed, shift):
    """A case in which all fronts do harm if the images are of another kind, which the gradients do not show."""
    outcome = invented(seed, gentle=True)
    outcome.tensors["probe_train_shift"] = torch.full((30,), shift)
    if shift > 0.1:
        outcome.runs = [replace(run, accuracy=60.0) if run.kind == "frozen" else run for run in outcome.runs]
    return example(outcome)


def test_one_more_input_is_learned_and_nothing_forgotten(cases, tmp_path):
    inputs = ["depth", "depth_squared", "body", "front_to_all"]
    before = fit(cases, inputs)
    seen = [fronts_of(shifted(seed, 0.5 if seed % 2 else 0.01)) for seed in range(40, 52)]
    after = extend(before, seen, "shift", SILENT["shift"])
    assert after.inputs == [*inputs, "shift"] and float(after.score.weight[0, -1]) < -0.5
    after.save(tmp_path / "after.safetensors")
    again = StartPredictor.load(tmp_path / "after.safetensors")
    for one in [*cases, shifted(62, 0.14)]:  # none of them shifted so far that it says anything
        assert torch.allclose(again(one.inputs), before(one.inputs), atol=1e-5)
    for seed, shift in ((60, 0.01), (61, 0.5)):
        one = shifted(seed, shift)
        assert choose(one, before(one.inputs).sigmoid(), 0.8) > 0
        assert (choose(one, again(one.inputs).sigmoid(), 0.8) > 0) == (shift < 0.1)
    said = [before(one.inputs).sigmoid() for one in seen], left_out(before, seen, "shift", SILENT["shift"])
    gains = [one.gains for one in seen]
    assert log_loss(said[1], gains)[0] < log_loss(said[0], gains)[0]
    with pytest.raises(ValueError, match="name='shift': the predictor looks at it already"):
        extend(after, seen, "shift", 0.0)
    with pytest.raises(ValueError, match=r"floors of \['shift'\]: not among the inputs depth"):
        StartPredictor(["depth"], floors={"shift": 0.0})


def test_condensed_cases_say_the_same(cases, tmp_path):
    condense(cases, tmp_path / "cases.jsonl")
    again = load_examples(tmp_path / "cases.jsonl")
    assert (tmp_path / "cases.jsonl").stat().st_size < 10_000 * len(cases)
    predictor = fit(cases)
    for one, same in zip(cases, again, strict=True):
        assert one.outcome.asdict() == same.outcome.asdict() and one.held == same.held
        assert torch.allclose(one.inputs, same.inputs, rtol=1e-5, atol=1e-5) and slope(one) == slope(same)
        assert torch.allclose(predictor(one.inputs), predictor(same.inputs), atol=1e-4) and fisher(one) == fisher(same)
    with pytest.raises(ValueError, match="is condensed and does not hold the probes"):
        load_examples(tmp_path / "cases.jsonl", probe_steps=4)
    with pytest.raises(FileNotFoundError, match="no case is recorded"):
        load_examples(tmp_path / "nowhere")


def test_the_commands(cases, tmp_path, capsys, monkeypatch):
    for one in cases:
        one.outcome.save(tmp_path / "cases" / f"{one.outcome.case.name}.safetensors")
    assert len(load_examples(tmp_path / "cases", probe_steps=8)) == len(cases)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    auto_cli(learn, args=[f"{tmp_path}/cases", f"{tmp_path}/new.safetensors", "--compare", "false"])
    assert (tmp_path / "new.png").read_bytes()[1:4] == b"PNG"
    auto_cli(judge, args=[f"{tmp_path}/cases", "--by", "family", "--predictors", f"[{tmp_path}/new.safetensors]"])
    told = capsys.readouterr().out
    assert "vit: 8 runs" in told and "new, 0.8" in told and "all: 24 runs" in told
