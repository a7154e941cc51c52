"""The prefix predictor: what it sees, what it learned, its file, and its training from the recorded runs."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from smartfrz_lightning.history.movement import Movement
from smartfrz_lightning.predictor.consequences import ConsequencesDataModule, branches, collate
from smartfrz_lightning.predictor.prefix import PrefixPredictor
from smartfrz_lightning.predictor.prefix_inputs import prefix_inputs

from smartfrz_lightning.cli import main
from smartfrz_lightning.stages import LaterStage

RECORDED = "research/results/moments.jsonl"


def movement(moved, losses=None, progress=None):
    moved = torch.tensor(moved)
    count = len(moved)
    losses = torch.ones(count) if losses is None else torch.tensor(losses)
    return Movement(moved, torch.full((count,), 0.1), losses, torch.arange(1, count + 1) / 20)


def p_safe(predictor, slowed, loss, depth, progress):
    count = round(20 * progress)
    seen = torch.stack([torch.linspace(0, slowed, count), torch.linspace(1, loss, count)], 1)[None]
    return float(predictor(seen, torch.tensor([[depth, math.log10(1 - progress)]])).sigmoid())


def test_what_is_frozen_shows_nothing():
    moved = [[0.1, 0.1, 0.1], [0.0, 0.1, 0.01]]
    seen, context = prefix_inputs(movement(moved), [True, False, False])
    assert seen[:, -1, 0].tolist() == pytest.approx([0, 0, -1]) and context[:, 0].tolist() == pytest.approx(
        [1 / 3, 2 / 3, 1]
    )


def test_what_trains_again_is_compared_with_its_first_movement():
    seen, _ = prefix_inputs(movement([[0.0], [0.0], [0.1], [0.01]]))
    assert seen[0, :, 0].tolist() == pytest.approx([0, 0, 0, -2])


def test_rates_that_fall_are_no_slowing():
    falling = Movement(
        torch.tensor([[0.1], [0.01]]), torch.tensor([0.1, 0.01]), torch.ones(2), torch.tensor([0.5, 1.0])
    )
    assert prefix_inputs(falling)[0][0, :, 0].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_shipped_predictor_knows_what_makes_freezing_safe():
    shipped = PrefixPredictor.load()
    here = {"slowed": -0.5, "loss": -0.5, "depth": 0.6, "progress": 0.5}
    p = p_safe(shipped, **here)
    assert p_safe(shipped, **{**here, "loss": -1.5}) > p > p_safe(shipped, **{**here, "loss": 0.9})
    assert p_safe(shipped, **{**here, "depth": 0.2}) > p > p_safe(shipped, **{**here, "depth": 1.0})
    assert p_safe(shipped, **{**here, "progress": 0.95}) > p > p_safe(shipped, **{**here, "progress": 0.25})


def test_padding_says_nothing():
    shipped = PrefixPredictor.load()
    lines = Path(RECORDED).read_text().splitlines()[:2]
    chosen = [branch for number, line in enumerate(lines) for branch in branches(json.loads(line), number)]
    batch = collate(chosen)
    assert len(batch["lengths"].unique()) > 1
    together = shipped(batch["seen"], batch["context"], batch["lengths"])
    alone = [shipped(branch.seen[None], branch.context[None]) for branch in chosen]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_it_is_trained_by_the_command_and_used(tmp_path):
    config = yaml.safe_load(Path("configs/predictor/prefix.yaml").read_text())
    config["model"]["init_args"]["path"] = str(tmp_path / "p.safetensors")
    config["data"]["init_args"]["held_out"] = ["minilm"]
    config["trainer"].update(max_epochs=20, check_val_every_n_epoch=20, enable_progress_bar=False)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "config.yaml")])
    ours = PrefixPredictor.load(tmp_path / "p.safetensors")
    assert p_safe(ours, -1.0, -1.0, 0.2, 0.9) > p_safe(ours, 0.0, 1.0, 1.0, 0.3) + 0.1
    LaterStage(str(tmp_path / "p.safetensors"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda whole: whole[:-50], "cut short"),
        (lambda whole: whole.replace(b"prefix-predictor", b"suffix-predictor"), "no prefix predictor"),
        (lambda whole: whole.replace(b'\\"hidden\\": 16', b'\\"hidden\\": 17'), "does not fit"),
    ],
    ids=["cut", "of another kind", "of another size"],
)
def test_files_that_are_not_a_predictor_are_refused(tmp_path, change, says):
    PrefixPredictor().save(tmp_path / "p.safetensors")
    whole = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "p.safetensors").write_bytes(change(whole))
    with pytest.raises(ValueError, match=says):
        LaterStage(str(tmp_path / "p.safetensors"))


def test_wrong_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="recorded="):
        ConsequencesDataModule(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="held_out"):
        ConsequencesDataModule(RECORDED, ["lenet"])
    with pytest.raises(ValueError, match="leaves no network"):
        ConsequencesDataModule(RECORDED, ConsequencesDataModule(RECORDED).networks)
    with pytest.raises(FileNotFoundError, match="predictor="):
        LaterStage(str(tmp_path / "none.safetensors"))
