import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from smartfrz_lightning.predictor.later import LaterPredictor, later_inputs
from smartfrz_lightning.predictor.network import AttentionPredictor, represent
from smartfrz_lightning.predictor.start import StartPredictor, start_inputs


@pytest.fixture(params=["raw", "displacement"])
def predictor(request):
    torch.manual_seed(0)
    return AttentionPredictor(32, hidden=16, features=8, decision_hidden=4, representation=request.param).eval()


def test_equations_1_to_4_one_layer_at_a_time(predictor):
    windows = torch.randn(3, 6, 32)
    scores = predictor(windows)
    for window, expected in zip(windows, scores, strict=True):
        seen = represent(window[None], torch.tensor([6]), predictor.representation)[0]
        keys = [predictor.key(snapshot) for snapshot in seen]
        query = predictor.query(seen[-1])
        attention = torch.stack([query @ key for key in keys]).softmax(0)
        context = sum(a * predictor.value(snapshot) for a, snapshot in zip(attention, seen, strict=True))
        torch.testing.assert_close(predictor.decision(context), expected)


def test_padding_does_not_matter(predictor):
    window = torch.randn(1, 4, 32)
    padded = torch.cat([window, torch.randn(1, 3, 32)], 1)
    both = torch.cat([padded, torch.randn(1, 7, 32)])
    torch.testing.assert_close(predictor(both, torch.tensor([4, 7]))[:1], predictor(window))


def test_displacement_does_not_depend_on_scale_or_order_of_weights():
    torch.manual_seed(0)
    windows, lengths = torch.randn(2, 5, 40), torch.tensor([5, 3])
    base = represent(windows, lengths, "displacement")
    torch.testing.assert_close(represent(100 * windows, lengths, "displacement"), base, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(represent(windows[..., torch.randperm(40)], lengths, "displacement"), base)


def test_size_and_cost_are_those_of_appendix_c():
    predictor = AttentionPredictor()
    megabytes = sum(p.numel() for p in predictor.parameters()) * 4 / 1e6
    assert 3.5 < megabytes < 4.5  # "about 4 MB"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predictor(torch.randn(1, 30, 1024))
    encoder, attention = 1024 * 256 + 256 * 256 + 256 * 64, 2 * 30 * 64
    decision = 64 * 32 + 32 * 32 + 32 * 2
    # A key and a value of every snapshot and one query; the paper's 0.12 GFLOPs allow for three times as many.
    assert counter.get_total_flops() == 2 * (61 * encoder + attention + decision) < 0.12e9


def test_save_and_load(predictor, tmp_path):
    predictor.save(tmp_path / "p.safetensors", trained_on=["a"])
    again = AttentionPredictor.load(tmp_path / "p.safetensors")
    windows = torch.randn(2, 5, 32)
    assert torch.equal(again(windows), predictor(windows))
    assert again.representation == predictor.representation


def test_the_shipped_predictor_loads_and_tells_a_still_layer_from_a_moving_one():
    predictor = AttentionPredictor.load()
    assert AttentionPredictor.shipped.with_suffix(".md").is_file()
    torch.manual_seed(0)
    start, noise = torch.randn(1, 1, 1024), torch.randn(1, 30, 1024)
    still = start + 1e-4 * noise
    moving = start + 0.1 * noise.cumsum(1)
    scores = predictor.confidence(torch.cat([still, moving]))
    assert scores[0] > 0.5 > scores[1]


def test_damaged_and_foreign_files_are_refused(predictor, tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        AttentionPredictor.load(path)
    predictor.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        AttentionPredictor.load(path)
    path.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 7'))
    with pytest.raises(ValueError, match="version 7"):
        AttentionPredictor.load(path)
    path.write_bytes(whole.replace(b"smartfrz-predictor", b"something-elsewhat"))
    with pytest.raises(ValueError, match="is no smartfrz-predictor of version 1, but something-elsewhat"):
        AttentionPredictor.load(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_shipped_predictors_say_the_same_under_another_default_dtype(dtype):
    windows = torch.rand(3, 30, AttentionPredictor.load().sample_size)
    gradients, weights, sizes = torch.rand(4, 2, 16), torch.rand(2, 16), torch.ones(3)

    def said():
        later = LaterPredictor.load()(later_inputs(4, 0.5, 0.3))
        start = StartPredictor.load()(start_inputs(gradients, weights, sizes))
        return later, start, AttentionPredictor.load().confidence(windows)

    before = said()
    torch.set_default_dtype(dtype)
    try:
        assert all(map(torch.equal, said(), before))
    finally:
        torch.set_default_dtype(torch.float)
