"""The later predictor: what it learned from recorded runs, and its file."""

import json
from pathlib import Path

import pytest
import torch

from smartfrz_lightning.predictor.later import LaterPredictor
from smartfrz_lightning.predictor.later_inputs import later_inputs
from smartfrz_lightning.stages import LaterStage, StartStage

RECORDED = Path("research/results/moments.jsonl")


def p_safe(depth=0.6, progress=0.5, loss=0.4):
    number = round(20 * depth) - 1
    return float(LaterPredictor.load()(later_inputs(20, progress, loss)).sigmoid()[number])


def test_the_shipped_predictor_knows_what_makes_freezing_safe():
    assert p_safe(loss=0.1) > p_safe() > p_safe(loss=0.9)
    assert p_safe(depth=0.2) > p_safe() > p_safe(depth=1.0)
    assert p_safe(progress=0.95) > p_safe() > p_safe(progress=0.25)
    assert p_safe(loss=0.05, progress=0.7) > 0.85 and p_safe(loss=0.9, progress=0.3, depth=1.0) < 0.4


def test_what_it_calls_safe_was_safe_in_the_recorded_runs():
    said, was = [], []
    for case in map(json.loads, RECORDED.read_text().splitlines()):
        full = next(run["accuracy"] for run in case["runs"] if run["kind"] == "full")
        layers, steps = len(case["layers"]) - 1, case["case"]["steps"]
        for run in case["runs"]:
            if run["kind"] == "frozen" and run["moment"]:
                check = int(20 * run["moment"] / steps + 1e-6)
                inputs = later_inputs(layers, check / 20, case["losses"][0][check - 1] / case["first_loss"])
                said.append(float(LaterPredictor.load()(inputs).sigmoid()[run["depth"] - 1]))
                was.append(run["accuracy"] >= full - 1)
    sure = [safe for p, safe in zip(said, was, strict=True) if p >= LaterStage().threshold]
    assert len(sure) > 30 and sum(sure) / len(sure) > 0.85 > sum(was) / len(was) + 0.2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda whole: whole[:-5], "cut short"),
        (lambda whole: whole.replace(b"later-predictor", b"other-predictor"), "is no smartfrz-later-predictor"),
        (lambda whole: whole.replace(b'"version\\": 1', b'"version\\": 9'), "of version 1"),
    ],
    ids=["cut", "of another kind", "of another version"],
)
def test_files_that_are_not_a_later_predictor_are_refused(tmp_path, change, says):
    path = tmp_path / "p.safetensors"
    predictor = LaterPredictor()
    predictor.save(path, runs=3)
    assert torch.equal(LaterPredictor.load(path)(later_inputs(4, 0.5, 0.5)), predictor(later_inputs(4, 0.5, 0.5)))
    whole = path.read_bytes()
    assert change(whole) != whole
    path.write_bytes(change(whole))
    with pytest.raises(ValueError, match=says):
        LaterStage(str(path))


def test_a_predictor_of_another_stage_is_refused(tmp_path):
    LaterPredictor().save(tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="is no smartfrz-start-predictor"):
        StartStage(str(tmp_path / "p.safetensors"))
    with pytest.raises(FileNotFoundError, match="predictor="):
        LaterStage(str(tmp_path / "none.safetensors"))
