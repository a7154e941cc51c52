"""The benchmark command, from configs to table and pictures, also when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from smartfrz_lightning.benchmark.command import benchmark_command, read_benchmark
from smartfrz_lightning.benchmark.results import append_result, read_results
from smartfrz_lightning.benchmark.run import _interrupted
from smartfrz_lightning.benchmark.spec import Benchmark, Run

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "benchmark"


def small(tmp_path, methods, **settings):
    """A benchmark of the quick config's experiment, in a still smaller form."""
    overrides = {
        "trainer.max_epochs": 4,
        "trainer.check_val_every_n_epoch": 4,
        "trainer.limit_train_batches": 8,
        "trainer.limit_val_batches": 1,
        "model.init_args.network.init_args.width": 4,
    }
    spec = {
        "experiment": [str(CONFIGS / "experiments" / "digits.yaml")],
        "methods": methods,
        "seeds": [1, 2],
        "overrides": overrides,
        "output": str(tmp_path / "out"),
    }
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump({**spec, **settings}))
    return path


def known(results):
    """What does not depend on the clock."""
    keys = ("run", "seed", "value", "steps")
    timelines = [{k: r["timeline"][k] for k in ("events", "states", "spent", "steps")} for r in results]
    return sorted(
        ([*(r[key] for key in keys), t] for r, t in zip(results, timelines, strict=True)), key=lambda row: row[:2]
    )


def test_all_methods(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    methods = yaml.safe_load((CONFIGS / "methods.yaml").read_text())["methods"]
    methods["smart_0_5"]["arguments"] = {"front_only": True, "threshold": 0.01, "snapshot_every_n_steps": 1}
    methods["movement"]["arguments"] = {"threshold": 10.0, "window": 4, "snapshot_every_n_steps": 1}
    config = small(tmp_path, methods, seeds=[1], record="full")
    benchmark_command(["--config", str(config)])
    results = {result["run"]: result for result in read_results(tmp_path / "out" / "results.jsonl")}
    assert set(results) == set(methods)
    assert results["full"]["steps"] == 32 and not results["full"]["timeline"]["events"]
    for name in ("smart_0_5", "linear", "interval", "static", "movement", "random"):
        assert results[name]["timeline"]["events"], name
    spent = {name: sum(result["timeline"]["spent"].values()) for name, result in results.items()}
    assert spent["random"] == pytest.approx(spent["smart_0_5"], rel=0.1)
    assert spent["shortened_flops"] == pytest.approx(spent["smart_0_5"], rel=0.05)
    assert spent["interval"] == pytest.approx(0.8 * spent["full"], rel=0.02)
    for result in results.values():
        plain = "callback" not in methods[result["run"]]
        assert result["seconds"]["train"] > result["timeline"]["callback_seconds"]
        assert (result["timeline"]["callback_seconds"] == 0) == plain, "full and shortened training are plain"
        assert result["versions"]["torch"] and result["hardware"]
    out = capsys.readouterr().out
    table = (tmp_path / "out" / "table.md").read_text()
    for name in methods:
        assert name in out and f"| {name} |" in table
    for name in ("accuracy_cost", "freezing", "step_cost", "moments", "cka", "gradient"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000


METHODS = {
    "full": {},
    "linear": {
        "callback": "LinearFreezeCallback",
        "arguments": {"t_0": 0.3},
        "overrides": {"model.init_args.schedule": "constant"},
    },
    "random": {"callback": "RandomFreezeCallback", "arguments": {"timeline": "{linear}/freeze_timeline.csv"}},
    "shortened": {"shorten_to": "linear"},
}


@pytest.fixture
def one_thread():
    """As many as each of two processes has on two cores: sums depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_several_runs_at_a_time_end_as_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    methods = {"full": {}, "half": {"callback": "StaticFreezeCallback"}, "same": {"shorten_to": "half"}}
    found = {}
    for jobs in (1, 2):
        output = tmp_path / str(jobs)
        config = small(tmp_path, methods, jobs=jobs, output=str(output))
        benchmark_command(["--config", str(config)])
        found[jobs] = read_results(output / "results.jsonl")
        assert (output / "accuracy_cost.png").exists()
    assert known(found[1]) == known(found[2])
    alone, beside = ((tmp_path / str(jobs) / "table.md").read_text().splitlines()[3].split("|") for jobs in (1, 2))
    assert alone[:7] == beside[:7] and beside[7] == " – " != alone[7]  # FLOPs, but no times
    methods["same"]["by"] = "seconds"
    with pytest.raises(ValueError, match="jobs=2: runs beside each other have no times, which .'same'. would need"):
        benchmark_command(["--config", str(small(tmp_path, methods, jobs=2))])


def test_killed_and_started_again_ends_in_the_same_table(tmp_path):
    (tmp_path / "a").mkdir()
    whole = small(tmp_path / "a", METHODS)
    benchmark_command(["--config", str(whole)])
    expected = read_results(tmp_path / "a" / "out" / "results.jsonl")

    config = small(tmp_path, METHODS)
    command = [sys.executable, "-m", "smartfrz_lightning.cli", "benchmark", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    halfway = tmp_path / "out" / "seed1" / "linear" / "last.ckpt"
    while not halfway.exists() and process.poll() is None:  # until the second run has done an epoch
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert halfway.exists()
    before = read_results(tmp_path / "out" / "results.jsonl")
    assert len(before) < len(expected)

    benchmark_command(["--config", str(config)])
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert results[: len(before)] == before, "a finished run was run again"
    assert known(results) == known(expected)


def test_a_failing_method_does_not_stop_the_others(tmp_path, capsys):
    methods = {"full": {}, "static": {"callback": "StaticFreezeCallback", "arguments": {"layers": 99}}, "plain": {}}
    with pytest.raises(SystemExit) as end:
        benchmark_command(["--config", str(small(tmp_path, methods, seeds=[1]))])
    assert end.value.code == 1
    assert "static, seed 1: layers=99: ImageClassifier has 7 layers" in " ".join(capsys.readouterr().err.split())
    assert [r["run"] for r in read_results(tmp_path / "out" / "results.jsonl")] == ["full", "plain"]


def test_a_config_that_cannot_be_parsed_is_one_failure(tmp_path, capsys):
    methods = {"full": {}, "odd": {"overrides": {"trainer.nope": 1}}, "after": {"shorten_to": "odd"}, "plain": {}}
    with pytest.raises(SystemExit):
        benchmark_command(["--config", str(small(tmp_path, methods, seeds=[1]))])
    said = " ".join(capsys.readouterr().err.split())
    assert "odd, seed 1: its config cannot be parsed" in said
    assert "not run, as odd (seed 1) is missing: after, seed 1" in said
    assert [r["run"] for r in read_results(tmp_path / "out" / "results.jsonl")] == ["full", "plain"]


def test_an_unfinished_run_of_other_settings_is_not_taken_up(tmp_path, capsys):
    config = small(tmp_path, {"full": {}}, seeds=[1], metric="nothing")
    with pytest.raises(SystemExit):  # trained to the end, but not validated as asked
        benchmark_command(["--config", str(config)])
    assert "metric='nothing': validation logs" in " ".join(capsys.readouterr().err.split())
    benchmark_command(["--config", str(small(tmp_path, {"full": {"overrides": {"trainer.max_epochs": 2}}}, seeds=[1]))])
    (result,) = read_results(tmp_path / "out" / "results.jsonl")
    assert result["steps"] == 16


def test_results_of_other_settings_are_not_mixed_in(tmp_path):
    benchmark_command(["--config", str(small(tmp_path, {"full": {}}, seeds=[1]))])
    other = small(tmp_path, {"full": {"overrides": {"trainer.max_epochs": 2}}}, seeds=[1])
    with pytest.raises(ValueError, match="holds a result of 'full' with other settings"):
        benchmark_command(["--config", str(other)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "seeds=.*at least one"),
        ({"seeds": [1, 1]}, "each once"),
        ({"baseline": "none"}, "baseline='none' is not one of"),
        ({"methods": {"full": Run(), "b": Run(shorten_to="c")}}, "methods.b refers to .'c'."),
        ({"methods": {"full": Run(shorten_to="b"), "b": Run(shorten_to="full")}}, "wait for each other"),
        ({"prepare": {"full": Run(seed=1)}}, "share the names"),
        ({"prepare": {"p": Run()}}, "prepare.p needs a seed"),
    ],
)
def test_bad_specs(change, message):
    spec = {"experiment": [], "methods": {"full": Run()}, "seeds": [1]}
    with pytest.raises(ValueError, match=message):
        Benchmark(**{**spec, **change})


def test_missing_experiment():
    with pytest.raises(FileNotFoundError, match="experiment='nowhere.yaml'"):
        Benchmark(experiment=["nowhere.yaml"], methods={"full": Run()}, seeds=[1])


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, {"run": "a"})
    path.write_text(path.read_text() + '{"run": "b", "se')
    append_result(path, {"run": "c"})
    assert [result["run"] for result in read_results(path)] == ["a", "c"]
    assert json.loads(path.read_text().splitlines()[0]) == {"run": "a"}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_whole(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    if path.is_relative_to(CONFIGS / "experiments"):
        used = [other for other in CONFIGS.rglob("*.yaml") if str(path.relative_to(CONFIGS)) in other.read_text()]
        assert used, "no benchmark uses it"
        return
    has = yaml.safe_load(path.read_text())
    configs = [*([] if "methods" in has else [CONFIGS / "methods.yaml"]), path]
    configs += [] if "experiment" in has else [CONFIGS / "quick.yaml"]
    benchmark = read_benchmark([f"--config={config}" for config in configs])
    assert json.dumps([run.overrides for run in benchmark.methods.values()] + [benchmark.overrides])


def test_overrides_of_a_class_and_of_its_settings():
    from smartfrz_lightning.benchmark.run import _nested

    whole = {"data": {"class_path": "pkg.Data", "init_args": {"batch_size": 4}}, "model": {"a": None}}
    one = {"data": "pkg.Data", "data.init_args.batch_size": 4, "model.a": None}
    assert _nested(one) == _nested(dict(reversed(one.items()))) == whole
    with pytest.raises(ValueError, match="'model.lr.max' and another one contradict each other at 'lr'"):
        _nested({"model.lr": 0.1, "model.lr.max": 1})


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.parametrize(
    "launcher", [[], pytest.param(TORCHRUN, marks=pytest.mark.slow)], ids=["lightning", "torchrun"]
)
def test_two_processes(tmp_path, launcher):
    """Started by Lightning after the command, or by torchrun before it."""
    methods = {"full": {}, "static": {"callback": "StaticFreezeCallback"}, "odd": {"overrides": {"trainer.nope": 1}}}
    methods |= {"shortened": {"shorten_to": "static", "by": "flops"}, "waits": {"shorten_to": "odd"}}
    methods["one"] = {"overrides": {"trainer.devices": 1, "trainer.strategy": "auto"}}
    config = small(tmp_path, methods, seeds=[1])
    command = [sys.executable, *launcher, "-m", "smartfrz_lightning.cli", "benchmark", "--config", str(config)]
    command.append(f"--experiment+={tmp_path / 'ddp.yaml'}")
    (tmp_path / "ddp.yaml").write_text("trainer: {strategy: ddp, devices: 2}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.count("failed: odd, seed 1: its config cannot be parsed") == 1, done.stderr[-3000:]
    assert done.stderr.count("one, seed 1: devices x num_nodes = 1, but 2 processes run this benchmark") == 1
    assert done.stderr.count("not run, as odd (seed 1) is missing: waits, seed 1") == 1
    assert done.stdout.count("results, table and pictures:") == 1
    results = {result["run"]: result for result in read_results(tmp_path / "out" / "results.jsonl")}
    assert list(results) == ["full", "static", "shortened"]
    assert all(result["processes"] == 2 for result in results.values())
    assert results["full"]["steps"] == 32 > results["shortened"]["steps"] > 0
    assert "| static |" in (tmp_path / "out" / "table.md").read_text()


def test_a_checkpoint_of_the_same_settings_is_left_to_all_processes(tmp_path):
    torch.save({}, tmp_path / "last.ckpt")
    (tmp_path / "digest.txt").write_text("same")
    before = (tmp_path / "digest.txt").stat()
    assert _interrupted(tmp_path, "same") == tmp_path / "last.ckpt"
    assert (tmp_path / "digest.txt").stat().st_mtime_ns == before.st_mtime_ns  # another process may be reading it
    assert _interrupted(tmp_path, "other") is None and not (tmp_path / "last.ckpt").exists()


def torchrun(config):
    command = [sys.executable, *TORCHRUN, "-m", "smartfrz_lightning.cli", "benchmark", "--config", str(config)]
    path = f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    (config.parent / "ddp.yaml").write_text("trainer: {strategy: ddp, devices: 2}")
    command.append(f"--experiment+={config.parent / 'ddp.yaml'}")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_and_the_command_goes_on(tmp_path, rank):
    """The process fails once, after the first epoch."""
    breaks = {"class_path": "scripted.BreaksOnce", "init_args": {"rank": rank, "mark": str(tmp_path / "broke")}}
    extra = {"callback": breaks["class_path"], "arguments": breaks["init_args"]}
    config = small(
        tmp_path, {"full": {}, "one_breaks": extra, "static": {"callback": "StaticFreezeCallback"}}, seeds=[1]
    )
    done = torchrun(config)
    assert done.returncode != 0 and "this machine broke" in done.stderr, done.stderr[-3000:]
    assert [result["run"] for result in read_results(tmp_path / "out" / "results.jsonl")] == ["full"]
    done = torchrun(config)
    assert done.returncode == 0, done.stderr[-3000:]
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert [result["run"] for result in results] == ["full", "one_breaks", "static"]
    assert (tmp_path / "broke").read_text() == "01"  # taken up in the second epoch
    assert results[0]["value"] == results[1]["value"]
