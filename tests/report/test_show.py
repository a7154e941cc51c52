"""What a run shows and leaves behind."""

import csv
import io

import pytest
from conftest import Classifier, mlp
from rich.console import Console
from scripted import ScriptedFreeze

from smartfrz_lightning import FreezingCallback
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.report.show import timeline_table
from smartfrz_lightning.report.timeline import FreezeEvent, Timeline


class Sure(ScriptedFreeze):
    def select(self, run):
        return dict.fromkeys(super().select(run).freeze, 0.75)


@pytest.mark.parametrize(("kind", "confidence"), [(ScriptedFreeze, ""), (Sure, "0.75")])
def test_confidence_stands_where_a_method_has_one(make_trainer, tmp_path, capsys, kind, confidence):
    freezer = kind({4: [0]})
    make_trainer(freezer, max_epochs=1).fit(Classifier(mlp()))
    rows = list(csv.DictReader((tmp_path / "freeze_timeline.csv").open()))
    assert [row["confidence"] for row in rows] == [confidence, "", "", ""]
    assert ("confi-" in capsys.readouterr().out) == bool(confidence)


def test_a_trial_run_leaves_no_files(make_trainer, tmp_path, capsys):
    make_trainer(ScriptedFreeze({1: [0]}), fast_dev_run=3).fit(Classifier(mlp()))
    said = capsys.readouterr().out
    assert "1 of 4 layers frozen" in said and "freeze_timeline.csv" not in said
    assert not list(tmp_path.rglob("freeze_timeline*"))


def test_the_timeline_is_kept_when_it_cannot_be_shown(make_trainer, tmp_path, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(Console, "print", closed)
    with pytest.raises(BrokenPipeError):
        make_trainer(ScriptedFreeze({4: [0]}), max_epochs=1).fit(Classifier(mlp()))
    assert (tmp_path / "freeze_timeline.csv").exists()


def test_a_method_that_names_no_layer(make_trainer):
    class Lost(FreezingCallback):
        def select(self, run):
            return ["net.99"]

    with pytest.raises(ValueError, match=r"Lost.select returned \['net.99'\]"):
        make_trainer(Lost()).fit(Classifier(mlp()))


def test_long_names_are_readable_in_80_columns():
    names = [f"model.bert.encoder.layer.{number}.attention.output.dense" for number in range(12)]
    layers = [Layer(name, (), (), (), 24_000_000) for name in names]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(timeline_table(Timeline(layers, [FreezeEvent(names[0], 123_456, 12.5, 0.93)], steps=200_000)))
    text = console.export_text()
    for number in range(12):
        assert f"model.bert.encoder.layer.{number}." in text
