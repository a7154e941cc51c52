"""The installed commands."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from smartfrz_lightning.cli import main


def test_the_command_is_this_program():
    ours = {e.name: e.value for e in entry_points(group="console_scripts") if "smartfrz" in e.value}
    assert ours == {"smartfrz": "smartfrz_lightning.cli:main"}


def test_the_command_finds_modules_in_the_working_directory(tmp_path):
    (tmp_path / "my_project.py").write_text(
        "from lightning.pytorch.demos.boring_classes import BoringModel\n\n\nclass MyModel(BoringModel): ...\n"
    )
    command = [Path(sys.executable).with_name("smartfrz"), "plan", "--model=my_project.MyModel"]
    done = subprocess.run([*command, "--print_config"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "my_project.MyModel" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("config", "shorter", "said"),
    [
        ("quickstart", ["--data.size=32", "--trainer.limit_train_batches=5"], "needs a run of 100 steps"),
        ("from_scratch", ["--trainer.max_epochs=3"], "of training FLOPs saved"),
    ],
)
def test_configs_that_need_no_download(tmp_path, capsys, config, shorter, said):
    quiet = [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    main(["fit", f"--config=configs/{config}.yaml", "--trainer.accelerator=cpu", *quiet, *shorter])
    out = " ".join(capsys.readouterr().out.split())
    assert said in out and "been trained before" not in out
    assert list(tmp_path.rglob("freeze_timeline.png"))


@pytest.mark.parametrize("name", ["resnet20", "vgg8", "mobilenet_v2", "vit"])
def test_recording_configs_build(name, tmp_path):
    from lightning.pytorch.cli import LightningCLI

    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
    files = ["base", name, "schedule_constant"]
    arguments = [f"--config=configs/recording/{file}.yaml" for file in files]
    cli = LightningCLI(run=False, args=[*arguments, f"--data.root={tmp_path}"])
    assert cli.model.schedule == "constant"
