"""The predictor learns from recordings: which layers still move, with the right sign, on a network left out."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer

from smartfrz_lightning.history.recording import Recording
from smartfrz_lightning.predictor import AttentionPredictor
from smartfrz_lightning.predictor.data import RecordingsDataModule, WindowDataset, stable_range_labels
from smartfrz_lightning.predictor.module import PredictorModule
from smartfrz_lightning.predictor.network import represent

SNAPSHOTS, SAMPLE = 60, 32


def recording(network, seed):
    """Four layers that stay and four that move; CKA is steady where they stay."""
    generator = torch.Generator().manual_seed(seed)
    stops = torch.tensor([0, 0, 0, 0, 60, 60, 60, 60])
    steps = torch.randn(SNAPSHOTS, 8, SAMPLE, generator=generator)
    moves = (torch.arange(SNAPSHOTS)[:, None] < stops).float()
    scale = torch.rand(8, 1, generator=generator) + 0.5
    walk = (steps * (0.1 * moves + 0.0005 * (1 - moves))[..., None]).cumsum(0)
    snapshots = scale * (torch.randn(1, 8, SAMPLE, generator=generator) + walk)
    checks = torch.arange(9, SNAPSHOTS, 2)
    noise = 0.02 + 0.05 * torch.rand(len(checks), 8, generator=generator)
    cka = 0.9 + noise * (checks[:, None] < stops)
    numbers = checks.float()
    return Recording(
        snapshots, torch.arange(SNAPSHOTS), checks, numbers / 8, cka, network,
        [f"layer{number}" for number in range(8)],
    )  # fmt: skip


@pytest.fixture
def recordings(tmp_path):
    for seed, network in enumerate(["a", "b", "left.out"]):
        recording(network, seed).save(tmp_path / f"{network}.safetensors")
    return tmp_path


@pytest.mark.parametrize("representation", ["displacement", "raw"])
def test_training_learns_which_layers_have_stopped(recordings, representation):
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=1e-3)
    module = PredictorModule(str(recordings / "out" / "mine.safetensors"), representation, SAMPLE, adam)
    (recordings / "out").mkdir()
    data = RecordingsDataModule([str(recordings)], held_out=["left.out"], window=10, epsilon=0.01)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=6, enable_model_summary=False, **quiet)
    trainer.fit(module, data)
    auroc = float(trainer.callback_metrics["val/left.out/auroc"])
    if representation == "raw":  # weights of another network as they are say nothing
        assert auroc < 0.95
        return
    assert auroc > 0.95
    predictor = AttentionPredictor.load(recordings / "out" / "mine.safetensors")
    start, noise = torch.randn(1, 1, SAMPLE), torch.randn(1, 10, SAMPLE)
    still, moving = predictor.confidence(start + torch.cat([5e-4 * noise, 0.1 * noise]).cumsum(1))
    assert still > 0.5 > moving and predictor.window == 10


def test_a_window_ends_with_the_snapshot_of_its_check_and_has_its_label():
    run = recording("a", 0)
    data = WindowDataset([run], ["a"], window=8, epsilon=0.01)
    last = data[len(data) - 1]
    end = int(run.check_step[-1])
    assert last["length"] == 8 and torch.equal(last["window"], run.snapshots[end - 7 : end + 1, 7])
    first = data[0]
    # Of the first check nothing is known: there is no other one in its epoch.
    assert first["length"] == 8 and torch.equal(first["window"][-1], run.snapshots[int(run.check_step[1]), 0])
    labels = [data[len(data) - 8 + layer]["label"] for layer in range(8)]  # at the last check
    assert labels == [1] * 4 + [0] * 4


def test_both_labels_weigh_the_same(recordings):
    module = PredictorModule(str(recordings / "mine.safetensors"), sample_size=SAMPLE)
    data = RecordingsDataModule([str(recordings)], window=8, epsilon=0.03)  # some of the moving ones count as ready
    data.setup("fit")
    assert data.train.labels.float().mean() > 0.51
    module.trainer = Trainer(accelerator="cpu", barebones=True)
    module.trainer.datamodule = data
    module.setup("fit")
    counts = data.train.labels.bincount(minlength=2)
    weights = module.get_buffer("label_weight")
    assert weights[0] * counts[0] == pytest.approx(float(weights[1] * counts[1]))


def test_displacement_is_from_the_first_and_from_the_latest_snapshot():
    windows = torch.zeros(1, 3, 4)
    windows[0, 1:] += torch.tensor([[1.0, -1.0, 1.0, -1.0], [3.0, -3.0, 3.0, -3.0]])
    seen = represent(windows, torch.tensor([3]), "displacement")
    spread = float(windows[0, -1].std())
    expected = lambda value: (torch.tensor(value / spread + 1e-6)).log10() / 2 + 1  # noqa: E731
    assert torch.allclose(seen[0, :, 0], torch.stack([expected(value) for value in (0.0, 1.0, 3.0)]), atol=1e-4)
    assert torch.allclose(seen[0, :, 3], torch.stack([expected(value) for value in (3.0, 2.0, 0.0)]), atol=1e-4)


def test_a_check_is_labelled_by_the_checks_before_it_alone():
    run = recording("a", 0)
    whole, of_epochs = stable_range_labels(run), replace(run, check_epoch=run.check_epoch.floor())
    assert (stable_range_labels(of_epochs)[-1] == whole[-1]).all()
    early = replace(of_epochs, cka=torch.cat([run.cka[:-1], run.cka[-1:] + 1]))  # the last check of an epoch differs
    assert torch.equal(stable_range_labels(early)[:-1], stable_range_labels(of_epochs)[:-1])
    assert (stable_range_labels(replace(run, check_epoch=torch.arange(len(run.check_epoch)) * 2.0)) == -1).all()
