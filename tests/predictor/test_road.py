"""The whole offline road by configs: reference, recording, predictor, use."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import Classifier, mlp
from safetensors import safe_open

from smartfrz_lightning import AttentionFreezeCallback, HistoryRecorder
from smartfrz_lightning.cli import main
from smartfrz_lightning.history.recording import Recording
from smartfrz_lightning.predictor import AttentionPredictor
from smartfrz_lightning.predictor.data import stable_range_labels
from smartfrz_lightning.similarity.cka import gram_cka, unbiased_gram


@pytest.fixture
def recorded(make_trainer, tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="reference")
    make_trainer(keep, enable_checkpointing=True, max_epochs=4).fit(Classifier(mlp(seed=1)))
    paths = str(tmp_path / "reference.ckpt"), str(tmp_path / "run.safetensors")
    recorder = HistoryRecorder(*paths, "mlp", checks_per_epoch=4, sample_size=64, probe_examples=61)
    model = Classifier(mlp(seed=2))
    make_trainer(recorder, max_epochs=4, num_sanity_val_steps=2).fit(model)
    return Recording.load(tmp_path / "run.safetensors"), model, tmp_path


def test_a_recording_holds_what_happened(recorded):
    recording, model, folder = recorded
    assert recording.network == "mlp" and recording.layers == ["net.0", "net.4", "net.7", "net.9"]
    assert recording.check_step.tolist() == list(range(2, 33, 2))
    assert recording.check_epoch[-1] == 4
    assert (recording.cka.abs() <= 1 + 1e-6).all() and (recording.cka[-1] > 0.1).all()
    # The last snapshot is the finished model's weights; the last CKA can be computed by hand, on the validation set.
    assert recording.snapshot_step[-1] == 32
    assert torch.isin(recording.snapshots[-1, 0], model.net[0].weight).all()
    reference = Classifier(mlp())
    reference.load_state_dict(torch.load(folder / "reference.ckpt", weights_only=True)["state_dict"])
    grams = []
    for net in (model.eval().net, reference.eval().net):
        grams.append(torch.cat([unbiased_gram(net[:5](x)).flatten() for x, _ in model.val_dataloader()]))
    assert recording.cka[-1, 1].item() == pytest.approx(gram_cka(*grams).item(), abs=1e-6)


def test_recording_changes_nothing_in_the_run(recorded, make_trainer):
    _, model, folder = recorded
    alone = Classifier(mlp(seed=2))
    make_trainer(max_epochs=4).fit(alone)
    assert alone.losses == model.losses


def test_the_file_is_readable_without_this_package(recorded):
    _, _, folder = recorded
    with safe_open(folder / "run.safetensors", "pt") as file:
        header = json.loads(file.metadata()["smartfrz"])
        assert file.get_tensor("cka").shape[1] == len(header["layers"])
    assert not list(folder.glob("*.part")) and not list(folder.glob(".*part"))


def test_an_interrupted_run_leaves_no_file(make_trainer, recorded):
    _, _, folder = recorded

    class Fails(Classifier):
        def training_step(self, batch, batch_idx):
            if self.global_step == 5:
                raise RuntimeError("power cut")
            return super().training_step(batch, batch_idx)

    paths = str(folder / "reference.ckpt"), str(folder / "broken.safetensors")
    recorder = HistoryRecorder(*paths, sample_size=8, probe_examples=61)
    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(recorder, num_sanity_val_steps=2).fit(Fails(mlp()))
    assert not list(folder.glob("*broken*"))


def test_a_sanity_check_with_too_few_examples_is_an_error(make_trainer, recorded):
    recorder = HistoryRecorder(str(recorded[2] / "reference.ckpt"), probe_examples=61)
    for steps, found in ((0, 0), (1, 32)):
        with pytest.raises(MisconfigurationException, match=f"got {found} examples in the sanity check.*now {steps}"):
            make_trainer(recorder, num_sanity_val_steps=steps).fit(Classifier(mlp()))


def test_labels_follow_the_rule():
    checks = torch.arange(1, 13) / 4
    cka = torch.linspace(0, 1, 12)[:, None].repeat(1, 2)
    cka[:, 1] = torch.tensor([0.2, 0.5, 0.7, 0.9, 0.9, 0.905, 0.9, 0.909, 0.902, 0.9, 0.95, 0.95])
    zero = torch.zeros(12)
    run = Recording(torch.zeros(1, 2, 4), zero[:1], zero, checks, cka, "n", ["a", "b"])
    labels = stable_range_labels(run, 0.01)
    assert (labels[:3] == -1).all() and (labels[3:, 0] == 0).all()
    assert labels[3:, 1].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert stable_range_labels(run, 0.2)[-1, 1] == 1


def test_damaged_recordings_are_refused(recorded, tmp_path):
    recording, _, folder = recorded
    path = folder / "run.safetensors"
    whole = path.read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="cut short"):
        Recording.load(folder / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="no recording"):
        Recording.load(folder / "nothing.safetensors")


def test_a_predictor_is_trained_by_the_command_and_used(recorded, make_trainer):
    recording, _, folder = recorded
    recording.network = "other"
    recording.save(folder / "second.safetensors")
    config = yaml.safe_load(Path("configs/predictor/displacement.yaml").read_text())
    config["model"]["init_args"].update(path=str(folder / "p.safetensors"), sample_size=64)
    recordings = [str(folder / "run.safetensors"), str(folder / "second.safetensors")]
    config["data"]["init_args"].update(recordings=recordings, held_out=["other"], epsilon=0.1)
    config["trainer"].update(max_epochs=2, enable_progress_bar=False, default_root_dir=str(folder))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(folder / "config.yaml")])
    card = (folder / "p.md").read_text()
    assert "held_out: ['other']" in card and "val/other/auroc_within_instant" in card
    freezer = AttentionFreezeCallback(str(folder / "p.safetensors"), threshold=0.01, front_only=True)
    make_trainer(freezer).fit(Classifier(mlp()))
    ours, shipped = AttentionPredictor.load(folder / "p.safetensors"), AttentionPredictor.load()
    assert ours.sample_size == 64 != shipped.sample_size
    windows = torch.randn(3, 30, 64).cumsum(1)
    confidences = ours.confidence(windows)
    assert freezer.frozen and len(set(confidences.tolist())) == 3
    assert all(0.01 < event.confidence < 1 for event in freezer.timeline.events)
