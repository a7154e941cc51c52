"""The benchmark in several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benching import small

from smartfrz_lightning.benchmark.results import read_results

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def launched(config, launcher):
    command = [sys.executable, *launcher, "-m", "smartfrz_lightning.cli", "benchmark", "--config", str(config)]
    path = f"{Path(__file__).parents[1] / 'helpers'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": path}
    (config.parent / "ddp.yaml").write_text("trainer: {strategy: ddp, devices: 2}")
    command.append(f"--experiment+={config.parent / 'ddp.yaml'}")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "launcher", [[], pytest.param(TORCHRUN, marks=pytest.mark.slow)], ids=["lightning", "torchrun"]
)
def test_two_processes(tmp_path, launcher):
    """Started by Lightning after the command, or by torchrun before it."""
    methods = {"full": {}, "static": {"callback": "StaticFreezeCallback"}, "odd": {"overrides": {"trainer.nope": 1}}}
    methods |= {"shortened": {"share": 0.5}, "waits": {"arguments": {"timeline": "{odd}/freeze_timeline.csv"}}}
    methods["one"] = {"overrides": {"trainer.devices": 1, "trainer.strategy": "auto"}}
    config = small(tmp_path, methods, seeds=[1])
    done = launched(config, launcher)
    assert done.returncode == 1
    assert done.stderr.count("failed: odd, seed 1: its config cannot be parsed") == 2, done.stderr[-3000:]
    assert done.stderr.count("one, seed 1: devices x num_nodes = 1, but 2 processes run this benchmark") == 2
    assert done.stderr.count("not run, as odd (seed 1) is missing: waits, seed 1") == 1
    assert done.stdout.count("results, table and picture:") == 1
    results = {result["run"]: result for result in read_results(tmp_path / "out" / "results.jsonl")}
    assert list(results) == ["full", "static", "shortened"]
    assert all(result["processes"] == 2 for result in results.values())
    assert (results["full"]["steps"], results["shortened"]["steps"]) == (32, 16)
    assert "| static |" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_and_the_command_goes_on(tmp_path, rank):
    """The process fails once, after the first epoch."""
    breaks = {"class_path": "scripted.BreaksOnce", "init_args": {"rank": rank, "mark": str(tmp_path / "broke")}}
    extra = {"callback": breaks["class_path"], "arguments": breaks["init_args"]}
    config = small(
        tmp_path, {"full": {}, "one_breaks": extra, "static": {"callback": "StaticFreezeCallback"}}, seeds=[1]
    )
    done = launched(config, TORCHRUN)
    assert done.returncode != 0 and "this machine broke" in done.stderr, done.stderr[-3000:]
    assert [result["run"] for result in read_results(tmp_path / "out" / "results.jsonl")] == ["full"]
    done = launched(config, TORCHRUN)
    assert done.returncode == 0, done.stderr[-3000:]
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert [result["run"] for result in results] == ["full", "one_breaks", "static"]
    assert (tmp_path / "broke").read_text() == "00"  # begun again
    assert results[0]["value"] == results[1]["value"]
