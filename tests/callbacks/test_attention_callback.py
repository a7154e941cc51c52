"""AttentionFreezeCallback with the predictor that ships."""

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from models import Classifier, Endless, mlp, still

from smartfrz_lightning import AttentionFreezeCallback


@pytest.mark.parametrize("front_only", [False, True])
def test_a_model_that_hardly_moves_freezes_all_but_its_head(make_trainer, tmp_path, front_only):
    freezer = AttentionFreezeCallback(threshold=0.9, front_only=front_only, snapshot_every_n_steps=1)
    trainer = make_trainer(freezer, logger=CSVLogger(tmp_path), log_every_n_steps=1, max_epochs=4)
    trainer.fit(Classifier(mlp(norm=False), still))
    assert freezer.frozen == ["net.0", "net.4", "net.7"]
    assert 0.2 < freezer.timeline.saved < 1 and 0 < freezer.timeline.callback_seconds < freezer.timeline.fit_seconds
    assert trainer.logged_metrics["freeze/layers"] == trainer.progress_bar_metrics["freeze/layers"] == 3
    folder = tmp_path / "lightning_logs" / "version_0"
    rows = list(csv.DictReader((folder / "freeze_timeline.csv").open()))
    assert [row["layer"] for row in rows] == ["net.0", "net.4", "net.7", "net.9"]
    assert rows[0]["step"] and rows[-1]["always_trains"] == "output" and not rows[-1]["step"]
    assert (folder / "freeze_timeline.png").stat().st_size > 5000


def test_a_model_that_moves_fast_freezes_nothing_and_says_why(make_trainer, capsys):
    freezer = AttentionFreezeCallback(front_only=True, snapshot_every_n_steps=1, threshold=0.999)
    make_trainer(freezer).fit(Classifier(mlp(), lambda p: torch.optim.SGD(p, lr=0.5)))
    assert not freezer.frozen
    assert "Freezing saved nothing" in capsys.readouterr().out


def test_front_only_waits_for_the_layers_before(make_trainer):
    class Third(AttentionFreezeCallback):
        def ready(self, windows, names, steps):
            return {name: 1.0 for name in names if name != "net.4"}

    freezer = Third(front_only=True, snapshot_every_n_steps=1)
    make_trainer(freezer).fit(Classifier(mlp(norm=False), still))
    assert freezer.frozen == ["net.0"]


@pytest.mark.parametrize("length", [{"max_epochs": -1, "max_steps": 20}, {"max_epochs": -1, "max_time": "00:00:00:02"}])
def test_loaders_without_length_and_runs_without_epochs(make_trainer, length):
    every = {"every_n_train_steps": 5, "snapshot_every_n_steps": 1}
    freezer = AttentionFreezeCallback(threshold=0.9, front_only=True, **every)
    make_trainer(freezer, limit_val_batches=0, **length).fit(Endless(mlp(), still))
    assert freezer.frozen and freezer.timeline.steps >= 10
