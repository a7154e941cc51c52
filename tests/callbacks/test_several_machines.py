"""The configs for several GPUs and machines, started as their comments say; here every machine is a process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

CONFIGS = Path(__file__).parents[2] / "configs"
COMMAND = ["-m", "smartfrz_lightning.cli", "fit", "--config", str(CONFIGS / "from_scratch.yaml")]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(machine, port):
    agent = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}"]
    return [sys.executable, "-m", "torch.distributed.run", *agent], {}


def srun(machine, port):
    slurm = {"JOB_ID": "4711", "JOB_NAME": "fit", "NTASKS": "2", "NNODES": "2", "NTASKS_PER_NODE": "1"}
    task = {"PROCID": str(machine), "LOCALID": "0", "NODEID": str(machine), "NODELIST": "127.0.0.1"}
    environment = {f"SLURM_{name}": value for name, value in {**slurm, **task}.items()}
    return [sys.executable], {**environment, "MASTER_PORT": str(port)}


@pytest.mark.parametrize("launch", [torchrun, srun])
def test_two_machines(tmp_path, launch):
    mine = {
        "trainer": {
            "accelerator": "cpu",
            "num_nodes": 2,
            "devices": 1,
            "precision": 32,
            "max_epochs": 3,
            "limit_train_batches": 6,
            "enable_progress_bar": False,
            "default_root_dir": str(tmp_path),
            "callbacks": [
                {
                    "class_path": "AttentionFreezeCallback",
                    "init_args": {"threshold": 0.01, "snapshot_every_n_steps": 1},
                },
                {"class_path": "scripted.SaveEnd", "init_args": {"folder": str(tmp_path)}},
            ],
        }
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    configs = ["--config", str(CONFIGS / "distributed" / "several_nodes.yaml"), "--config", str(tmp_path / "mine.yaml")]
    path = f"{Path(__file__).parents[1] / 'helpers'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    port, machines = free_port(), []
    for machine in (0, 1):
        start, own = launch(machine, port)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **own}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        machines.append(subprocess.Popen([*start, *COMMAND, *configs], env=environment, **pipes))
    for machine in machines:
        said = machine.communicate(timeout=300)[1]
        assert machine.returncode == 0, said[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["world"] == second["world"] == 2
    assert first["frozen"] == second["frozen"] != []
    norms = ("running_mean", "running_var")  # those of each rank's own batches, as always under DDP
    for name, tensor in first["weights"].items():
        assert name.endswith(norms) or torch.equal(tensor, second["weights"][name]), name


def test_eight_gpus_parse():
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningArgumentParser

    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_argument("--config", action="config")
    config = parser.parse_args(["--config", str(CONFIGS / "distributed" / "eight_gpus.yaml")])
    assert (config.trainer.devices, config.trainer.strategy) == (8, "ddp")
