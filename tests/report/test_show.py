"""What a run shows and leaves behind."""

import csv
import io

import fsspec
import pytest
from models import Classifier, mlp
from rich.console import Console
from rich.progress import Progress
from scripted import ScriptedFreeze

from smartfrz_lightning.callbacks.showing import print_shown
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.report.show import timeline_table
from smartfrz_lightning.report.timeline import FreezeEvent, Timeline


class Sure(ScriptedFreeze):
    def select(self, run):
        return dict.fromkeys(super().select(run).freeze, 0.75)


@pytest.mark.parametrize(("kind", "confidence"), [(ScriptedFreeze, ""), (Sure, "0.75")])
def test_confidence_stands_where_a_method_has_one(make_trainer, tmp_path, capsys, kind, confidence):
    freezer = kind({4: [0]}, report=str(tmp_path))
    make_trainer(freezer, max_epochs=1).fit(Classifier(mlp()))
    rows = list(csv.DictReader((tmp_path / "freeze_timeline.csv").open()))
    assert [row["confidence"] for row in rows] == [confidence, "", "", ""]
    said = capsys.readouterr().out
    assert ("confi-" in said) == bool(confidence) and "thaw() lets them train again" in " ".join(said.split())


def test_a_trial_run_leaves_no_files(make_trainer, tmp_path, capsys):
    make_trainer(ScriptedFreeze({1: [0]}), fast_dev_run=3).fit(Classifier(mlp()))
    said = capsys.readouterr().out
    assert "1 of 4 layers frozen" in said and "freeze_timeline.csv" not in said
    assert not list(tmp_path.rglob("freeze_timeline*"))


@pytest.mark.parametrize("what", ["print", "plot"])
def test_a_finished_fit_is_not_lost_when_it_cannot_be_shown(make_trainer, tmp_path, monkeypatch, what):
    def closed(*_, **__):
        raise BrokenPipeError

    if what == "print":
        monkeypatch.setattr(Console, "print", closed)
    else:
        monkeypatch.setattr("smartfrz_lightning.callbacks.showing.plot_timeline", closed)
    freezer = ScriptedFreeze({4: [0]}, report=tmp_path)
    with pytest.warns(UserWarning, match="could not be (printed|written).*BrokenPipeError.*it is in .timeline"):
        make_trainer(freezer, max_epochs=1).fit(Classifier(mlp()))
    assert (tmp_path / "freeze_timeline.csv").exists() and freezer.timeline.frozen == ["net.0"]


def test_a_terminal_that_takes_ascii_only(make_trainer, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", out)
    make_trainer(ScriptedFreeze({4: [0]}), max_epochs=1).fit(Classifier(mlp()))
    out.flush()
    assert "1 of 4 layers frozen, 1" in out.buffer.getvalue().decode("ascii")


def test_the_next_run_overwrites_nothing(make_trainer, tmp_path):
    for step in (4, 6):
        make_trainer(ScriptedFreeze({step: [0]}, report=str(tmp_path)), max_epochs=1).fit(Classifier(mlp()))
    first, second = (list(csv.DictReader((tmp_path / f"freeze_timeline{n}.csv").open())) for n in ("", "-v1"))
    assert (first[0]["step"], second[0]["step"]) == ("4", "6")
    assert (tmp_path / "freeze_timeline-v1.png").exists()


def test_without_a_logger_or_a_folder_no_file_is_written(make_trainer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for how in ({"logger": False}, {"barebones": True}):
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
        settings = {**quiet, "num_sanity_val_steps": None} if "barebones" in how else {}
        make_trainer(ScriptedFreeze({4: [0]}), max_epochs=1, **{**settings, **how}).fit(Classifier(mlp()))
    assert not list(tmp_path.rglob("freeze_timeline*")) and "layers frozen" in capsys.readouterr().out


def test_the_report_goes_where_it_is_told(make_trainer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_trainer(ScriptedFreeze({4: [0]}, report=False), max_epochs=1).fit(Classifier(mlp()))
    assert "layers frozen" not in capsys.readouterr().out and not list(tmp_path.rglob("freeze_timeline*"))
    make_trainer(ScriptedFreeze({4: [0]}, report="memory://reports"), max_epochs=1).fit(Classifier(mlp()))
    system = fsspec.filesystem("memory")
    assert system.exists("/reports/freeze_timeline.csv") and system.exists("/reports/freeze_timeline.png")
    assert not list(tmp_path.rglob("freeze_timeline*")) and not (tmp_path / "memory:").exists()


def test_long_names_are_readable_in_80_columns():
    names = [f"model.bert.encoder.layer.{number}.attention.output.dense" for number in range(12)]
    layers = [Layer(name, (), (), (), 24_000_000) for name in names]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(timeline_table(Timeline(layers, [FreezeEvent(names[0], 123_456, 12.5, 0.93)], steps=200_000)))
    text = console.export_text()
    for number in range(12):
        assert f"model.bert.encoder.layer.{number}." in text


def test_the_report_is_printed_above_a_progress_bar():
    terminal = io.StringIO()
    with Progress(console=Console(file=terminal, force_terminal=True, width=80)) as bar:
        bar.add_task("training")
        print_shown("the last line of a report")
    assert "the last line of a report" in terminal.getvalue()
