"""Two real processes on gloo: same layers frozen, same weights, and the frozen ones are not communicated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from models import Classifier, mlp
from lightning.pytorch import Trainer
from scripted import SaveEnd, ScriptedFreeze

if __name__ == "__main__":
    freezer = ScriptedFreeze({{3: [0, 1]}})
    trainer = Trainer(callbacks=[freezer, SaveEnd({root!r})], max_epochs=2, accelerator="cpu", devices=2,
                      strategy={strategy!r}, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir={root!r})
    trainer.fit(Classifier(mlp()))
"""


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_two_processes(tmp_path, strategy):
    script = tmp_path / "run.py"
    script.write_text(
        SCRIPT.format(tests=str(Path(__file__).parents[1] / "helpers"), root=str(tmp_path), strategy=strategy)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["frozen"] == second["frozen"] == ["net.0", "net.4"]
    norms = ("running_mean", "running_var")  # those of each rank's own batches, as always under DDP
    for name, tensor in first["weights"].items():
        assert name.endswith(norms) or torch.equal(tensor, second["weights"][name]), name
