"""What is published follows from the recorded runs and from the docstrings."""

import json
from pathlib import Path

import pytest

import smartfrz_lightning
from research.cards import CALLBACKS, card, main
from research.outcomes.branches import start_loss
from research.runs import Runs
from research.verify import differences, recomputed
from smartfrz_lightning import FreezingCallback
from smartfrz_lightning.predictor.later import LaterPredictor, later_inputs
from smartfrz_lightning.stages import LaterStage

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "research" / "results" / "moments.jsonl"


def test_the_page_of_methods_is_that_of_the_docstrings(tmp_path):
    named = {name for name in smartfrz_lightning.__all__ if name.endswith("FreezeCallback")}
    assert {callback.__name__ for callback in CALLBACKS} == named
    main(str(tmp_path / "methods.md"))
    assert (ROOT / "docs/methods.md").read_text() == (tmp_path / "methods.md").read_text(), (
        "run python -m research.cards"
    )
    with pytest.raises(ValueError, match="says nothing of When, When not, Cost, Source"):
        card(FreezingCallback)


def test_published_numbers_follow_from_the_recorded_runs(tmp_path):
    assert not list(differences(ROOT, Runs()))
    page = tmp_path / "README.md"
    right = recomputed("It saves 1.00<!-- = flops resnet32_long smart --> of it.\n", Runs())
    page.write_text(right)
    assert not list(differences(tmp_path, Runs()))
    page.write_text(right.replace("0.", "9."))
    assert any("should be" in line for line in differences(tmp_path, Runs()))
    page.write_text("It saves a lot<!-- = flops resnet32_long smart -->.\n")
    assert any("marks" in line for line in differences(tmp_path, Runs()))


def test_what_it_calls_safe_was_safe_in_the_recorded_runs():
    said, was = [], []
    for case in map(json.loads, RECORDED.read_text().splitlines()):
        full = next(run["accuracy"] for run in case["runs"] if run["kind"] == "full")
        layers, steps = len(case["layers"]) - 1, case["case"]["steps"]
        for run in case["runs"]:
            if run["kind"] == "frozen" and run["moment"]:
                check = int(20 * run["moment"] / steps + 1e-6)
                inputs = later_inputs(layers, check / 20, case["losses"][0][check - 1] / start_loss(case))
                said.append(float(LaterPredictor.load()(inputs).sigmoid()[run["depth"] - 1]))
                was.append(run["accuracy"] >= full - 1)
    sure = [safe for p, safe in zip(said, was, strict=True) if p >= LaterStage().threshold]
    assert len(sure) > 30 and sum(sure) / len(sure) > 0.85 > sum(was) / len(was) + 0.2
