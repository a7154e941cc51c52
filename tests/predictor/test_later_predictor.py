"""The later predictor: what it learned from recorded runs, and its file."""

import torch

from smartfrz_lightning.predictor.later import LaterPredictor, later_inputs


def p_safe(depth=0.6, progress=0.5, loss=0.4):
    number = round(20 * depth) - 1
    return float(LaterPredictor.load()(later_inputs(20, progress, loss)).sigmoid()[number])


def test_the_shipped_predictor_knows_what_makes_freezing_safe():
    assert p_safe(loss=0.1) > p_safe() > p_safe(loss=0.9)
    assert p_safe(depth=0.2) > p_safe() > p_safe(depth=1.0)
    assert p_safe(progress=0.95) > p_safe() > p_safe(progress=0.25)
    assert p_safe(loss=0.05, progress=0.7) > 0.85 and p_safe(loss=0.9, progress=0.3, depth=1.0) < 0.4


def test_a_file_holds_the_predictor(tmp_path):
    predictor, inputs = LaterPredictor(), later_inputs(4, 0.5, 0.5)
    predictor.mean += 1.0
    predictor.save(tmp_path / "p.safetensors", runs=3)
    assert torch.equal(LaterPredictor.load(tmp_path / "p.safetensors")(inputs), predictor(inputs))
