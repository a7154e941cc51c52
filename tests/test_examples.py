"""The programs in examples/ run as they stand, as a user would start them."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_bert import bert
from torchvision.io import write_png

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*arguments):
    """What a program prints, from the root of the repository, without a network."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def photos(tmp_path):
    for part in ("train", "test"):
        for number, name in enumerate("ab"):
            (tmp_path / part / name).mkdir(parents=True)
            for image in range(64):
                pixels = torch.randint(128, (3, 32, 32), dtype=torch.uint8) + 100 * number
                write_png(pixels.to(torch.uint8), str(tmp_path / part / name / f"{image}.png"))
    return tmp_path


@pytest.fixture
def sentences(tmp_path):
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        for number in range(200):
            writer.writerow({"text": f"the {'bell rang' if number % 2 else 'ring'}", "label": number % 2})
    return tmp_path / "rows.csv"


def test_timm(photos):
    out = run("examples/finetune_timm.py", photos, "--no-pretrained", "--epochs", 2)
    assert "training FLOPs saved" in out and re.search(r"accuracy \d+\.\d%", out)


def test_text(sentences, tmp_path):
    out = run(
        "examples/finetune_text.py", sentences, "--encoder", bert(tmp_path / "bert"), "--epochs", 25, "--lr", 0.003
    )
    assert float(re.search(r"accuracy (\d+\.\d)%", out)[1]) > 90
    assert "training FLOPs saved" in out


def test_own_cli():
    out = run("examples/own_cli.py", "fit", "--config", "examples/own_cli.yaml", "--trainer.accelerator", "cpu")
    assert "training FLOPs saved" in out


def test_fabric():
    out = run("examples/fabric_loop.py")
    assert float(re.findall(r"accuracy (\d+\.\d)%", out)[-1]) > 90
    assert "training FLOPs saved" in out


def test_two_processes():
    out = run("examples/two_processes.py")
    assert "1 of 4 layers frozen" in out and re.search(r"accuracy \d+\.\d%", out)


def test_plan_and_freeze():
    out = run("examples/plan_and_freeze.py")
    chosen = int(re.search(r"the first (\d+) layers are frozen", out)[1])
    assert chosen > 10 and f"{chosen} of 50 layers frozen" in out


def test_the_notebook_is_executed_and_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    client = pytest.importorskip("nbclient", reason="needs the extra docs")
    pytest.importorskip("ipykernel", reason="needs the extra docs")
    notebook = nbformat.read(ROOT / "examples/one_run.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells) and "image/png" in str([cell.outputs for cell in cells])
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
