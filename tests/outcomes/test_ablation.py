"""What a start predictor is worth with other inputs, labels and probes."""

import json

import pytest
import torch

pytest.importorskip("sklearn")

from test_outcomes import CASE, images  # noqa: F401

from smartfrz_lightning.outcomes.ablation import fitted, main, score, seen_again
from smartfrz_lightning.outcomes.fronts import Fronts, load_fronts
from smartfrz_lightning.outcomes.probe_again import LENGTHS, SAMPLES, SEEN
from smartfrz_lightning.outcomes.probe_again import main as probe_again
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.start_inputs import INPUTS

RESULTS = "configs/outcomes/results"


def of_depths(*depths, gains=(1.0, -5.0)):
    inputs = torch.zeros(len(depths), len(INPUTS))
    inputs[:, 0] = torch.tensor(depths) / 10
    return Fronts(CASE, list(depths), inputs, torch.tensor([0.8, 0.5]), torch.tensor(gains), torch.tensor(gains))


def test_scores_by_hand():
    predictor = StartPredictor(["depth"])
    with torch.no_grad():  # odds of 2 for the first front, of -2 for the second
        predictor.score.weight.fill_(-10.0)
        predictor.score.bias.fill_(4.0)
    one = score(predictor, [of_depths(2, 6), of_depths(2, 6, gains=(3.0, 2.0))])
    assert one.within == 1.0 and one.sure == 1.0  # the second case has no front that does harm
    assert (one.points, one.flops, one.above) == (2.0, pytest.approx(0.8), 2.0)
    # Three fronts do no harm; the one that does is less likely than two of them, and as likely as the third.
    assert one.auroc == pytest.approx(2 / 3 + 1 / 6, abs=0.01)
    assert fitted([of_depths(2, 6, gains=(1.0, 1.0))]) is None


def test_other_probes_go_with_their_own_fronts():
    probe = {"depths": [2, 6], "samples": {"16": [[1.0] * len(SEEN), [2.0] * len(SEEN)]}}
    probes = {json.dumps(CASE.asdict()): probe}
    [one] = seen_again([of_depths(2, 6)], probes, "samples", 16)
    assert one.inputs[:, INPUTS.index("front")].tolist() == [1.0, 2.0]
    assert one.inputs[1, 0] == of_depths(2, 6).inputs[1, 0]  # depth is no matter of the probe
    with pytest.raises(ValueError, match=r"no probe of the fronts \[2, 8\] of .*: record it by outcomes.probe_again"):
        seen_again([of_depths(2, 8)], probes, "samples", 16)


def test_the_shipped_results_give_a_table(capsys):
    looks = [f"{RESULTS}/{name}.jsonl" for name in ("second_look", "second_look_text", "training")]
    main(looks, f"{RESULTS}/held_out.jsonl", f"{RESULTS}/probes.jsonl", draws=2)
    shown = capsys.readouterr().out
    assert "48 cases to learn from, 2 draws; 33 held out" in shown and "16 weights a layer" in shown
    assert "loss at most 2 % higher" in shown and "probe of 30 steps" in shown


def test_probes_are_recorded(images, tmp_path):  # noqa: F811
    line = {"case": CASE.asdict(), "full": 80.0, "shortened": {"0.5": 70.0}, "inputs": [[0.0] * len(INPUTS)] * 7}
    line["fronts"] = [{"depth": depth, "cost": 0.5, "accuracy": 79.0} for depth in (6, 2)]
    (tmp_path / "looks.jsonl").write_text(json.dumps(line))
    for _ in range(2):  # the second time there is nothing to do
        probe_again([str(tmp_path / "looks.jsonl")], str(images), str(tmp_path), str(tmp_path / "probes.jsonl"))
    [probe] = [json.loads(line) for line in (tmp_path / "probes.jsonl").open()]
    assert probe["depths"] == [2, 6] and set(probe["samples"]) == {str(size) for size in SAMPLES}
    assert set(probe["lengths"]) == {str(length) for length in LENGTHS}
    assert torch.tensor(probe["samples"]["16"]).shape == (2, len(SEEN))
    [case] = seen_again(load_fronts(tmp_path / "looks.jsonl"), {json.dumps(CASE.asdict()): probe}, "lengths", 5)
    expected = torch.tensor([row[SEEN.index("front")] for row in probe["lengths"]["5"]])
    assert case.inputs[:, INPUTS.index("front")].equal(expected)
