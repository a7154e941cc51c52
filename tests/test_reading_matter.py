"""The code in README, documentation and CONTRIBUTING runs, with a little data in place of the user's."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from models import Classifier, mlp

from smartfrz_lightning import FreezingCallback
from smartfrz_lightning.benchmark.results import read_results
from smartfrz_lightning.benchmark.suite import benchmark_command

ROOT = Path(__file__).parents[1]
PAGES = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/**/*.md"))]
BENCHMARKED = ["full", "smart", "half", "full_0.6", "full_0.8"]
FENCED = re.compile(r'```(\w+)(?: title="([^"]*)")?\n(.*?)```', re.DOTALL)


def blocks(page, *languages):
    """Language, title and code of the blocks of a page."""
    found = FENCED.findall((ROOT / page).read_text())
    return [block for block in found if block[0] in languages]


def short(code):
    """A few batches on one CPU, without files, in place of a training on eight GPUs."""
    code = code.replace('strategy="ddp", devices=8, ', "")
    settings = (
        "logger=False, enable_progress_bar=False, limit_val_batches=0, limit_train_batches=4, accelerator='cpu', "
    )
    return code.replace("Trainer(", f"Trainer({settings}enable_checkpointing=False, ")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder, with a module of a model and data."""
    (tmp_path / "my_project.py").write_text(
        "from lightning.pytorch.demos.boring_classes import BoringDataModule as MyData, BoringModel\n"
        "import torch\n\n\nclass MyModel(BoringModel):\n    def __init__(self):\n        super().__init__()\n"
        "        self.neck, self.head = torch.nn.Linear(32, 8), torch.nn.Linear(8, 2)\n"
        "        del self.layer\n\n    def forward(self, x):\n        return self.head(self.neck(x))\n\n"
        "    def validation_step(self, batch, batch_idx):\n        self.log('val_accuracy', self(batch).mean())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_project", raising=False)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_the_code_of_a_page_runs(page, project, monkeypatch, capsys):
    if page == "docs/methods.md":
        pytest.skip("its blocks are signatures, made of the docstrings")
    names = {"model": Classifier(mlp()), "data": None}
    for language, title, code in blocks(page, "python", "yaml"):
        if title:
            (project / title).write_text(code)
        if title == "benchmark.yaml":
            benchmark_command(["--config", title, "--seeds=[1]", '--overrides={"trainer.max_epochs": 2}'])
            assert [result["run"] for result in read_results(project / "runs/mine/results.jsonl")] == BENCHMARKED
        elif language == "yaml":
            assert "trainer" in yaml.safe_load(code)
        elif title:
            quiet = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]
            monkeypatch.setattr(sys, "argv", [title, "fit", "--config", "config.yaml", *quiet])
            runpy.run_path(title)
        else:
            exec(short(code), names)
    if "freezer" in names:
        assert f"{names['freezer'].timeline.saved:.1%} of training FLOPs saved" in names["freezer"].report()
    if page == "README.md":
        assert names["freezer"].run.frozen == ["0", "2"]


def test_contributing(capsys):
    names = {}
    for _, _, code in blocks("CONTRIBUTING.md", "python"):
        exec(code, names)
    assert issubclass(names["OneByOneFreezeCallback"], FreezingCallback)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "research/README.md", *PAGES])
def test_commands_name_files_and_modules_that_are_there(page):
    text = "".join(code for _, _, code in blocks(page, "bash"))
    for file in re.findall(r"(?:configs|research|examples|predictor_weights)/[\w/.]+\.\w+", text):
        assert (ROOT / file).exists(), f"{page}: {file}"
    for module in re.findall(r"-m (research[\w.]*|smartfrz_lightning[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{page}: {module}"


def test_quoted_messages_are_those_of_the_code():
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/questions.md").read_text(), re.MULTILINE)
    code = "".join(path.read_text() for path in (ROOT / "smartfrz_lightning").rglob("*.py"))
    for part in (part.strip() for row in rows for part in re.split(r"\d[\d.]*", row)):
        assert part in code, part
    assert len(rows) > 5


def test_links_lead_somewhere():
    for page in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES]:
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
