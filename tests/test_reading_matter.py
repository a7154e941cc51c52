"""The Python code in README.md and CONTRIBUTING.md runs, with a little data in place of the user's."""

import re
from pathlib import Path

import pytest
import timm
import torch
from small_bert import bert
from torchvision.io import write_png

import smartfrz_lightning
from smartfrz_lightning import FreezingCallback
from smartfrz_lightning.benchmark.cards import CALLBACKS, card
from smartfrz_lightning.benchmark.cards import main as write_cards

ROOT = Path(__file__).parents[1]


def blocks(file):
    return re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data by the names that the README uses; short, quiet runs; no downloads."""
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / "data" / "photos" / part / name).mkdir(parents=True)
            for number in range(64):
                image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
                write_png(image, str(tmp_path / "data" / "photos" / part / name / f"{number}.png"))
    rows = "".join(f"gj04\t{n % 2}\t\tThe {'bell rang' if n % 2 else 'ring'}.\n" for n in range(64))
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(rows)
    bert(tmp_path / "bert-base-uncased")
    monkeypatch.chdir(tmp_path)
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, num_classes: create(name, num_classes=num_classes)
    )
    return tmp_path


def with_trainer(code):
    return "Trainer(" in code and "model = " in code


@pytest.mark.parametrize("code", list(filter(with_trainer, blocks("README.md"))), ids=["timm", "bert"])
def test_readme(place, code, capsys):
    settings = (
        "logger=False, enable_progress_bar=False, limit_val_batches=0, limit_train_batches=4, accelerator='cpu', "
    )
    names = {}
    exec(code.replace("Trainer(", f"Trainer({settings}").replace("image_size=224", "image_size=32"), names)
    assert names["trainer"].global_step >= 4
    out = capsys.readouterr().out
    assert re.search(r"\d+ of [1-9]\d* layers frozen, \d+\.\d% of training FLOPs saved", out)


def test_readme_loop(place, capsys):
    (code,) = (code for code in blocks("README.md") if "Freezer(" in code)
    exec(code, {})
    assert capsys.readouterr().out.strip() == "['0', '2'] 30% of training FLOPs saved"


def test_contributing(place):
    names = {}
    for code in blocks("CONTRIBUTING.md"):
        exec(code, names)
    assert issubclass(names["OneByOneFreezeCallback"], FreezingCallback)


def test_the_method_cards_are_those_of_the_docstrings(tmp_path):
    assert {callback.__name__ for callback in CALLBACKS} == {
        name for name in smartfrz_lightning.__all__ if name.endswith("FreezeCallback")
    }
    write_cards(str(tmp_path / "cards.md"))
    shipped = ROOT / "smartfrz_lightning/callbacks/CARDS.md"
    assert shipped.read_text() == (tmp_path / "cards.md").read_text(), f"run {write_cards.__module__} {shipped.name}"
    with pytest.raises(ValueError, match="says nothing of When, When not, Cost, Source"):
        card(FreezingCallback)
