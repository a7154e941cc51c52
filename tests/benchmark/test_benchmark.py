"""The benchmark: methods, seeds, interrupted runs, bad specifications."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from benching import CONFIGS, ROOT, small

from smartfrz_lightning.benchmark.results import append_result, read_results
from smartfrz_lightning.benchmark.run import digest
from smartfrz_lightning.benchmark.spec import Benchmark, Run
from smartfrz_lightning.benchmark.suite import benchmark_command, read_benchmark


def known(results):
    """What does not depend on the clock."""
    keys = ("run", "seed", "value", "steps")
    timelines = [{k: r["timeline"][k] for k in ("events", "spent", "full", "steps")} for r in results]
    return sorted(
        ([*(r[key] for key in keys), t] for r, t in zip(results, timelines, strict=True)), key=lambda row: row[:2]
    )


def test_all_methods(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    methods = yaml.safe_load((CONFIGS / "methods.yaml").read_text())["methods"]
    methods["paper_front_only"]["arguments"] = {"front_only": True, "threshold": 0.01, "snapshot_every_n_steps": 1}
    methods["movement"]["arguments"] = {"threshold": 10.0, "window": 4, "snapshot_every_n_steps": 1}
    methods["shorter"] = {"share": 0.5}
    config = small(tmp_path, methods, seeds=[1])
    benchmark_command(["--config", str(config)])
    results = {result["run"]: result for result in read_results(tmp_path / "out" / "results.jsonl")}
    assert set(results) == set(methods)
    assert results["full"]["steps"] == 32 and not results["full"]["timeline"]["events"]
    for name in ("paper_front_only", "linear", "interval", "static", "movement", "random"):
        assert results[name]["timeline"]["events"], name
    spent = {name: sum(result["timeline"]["spent"].values()) for name, result in results.items()}
    assert spent["random"] == pytest.approx(spent["paper_front_only"], rel=0.1)
    assert spent["shorter"] == pytest.approx(0.5 * spent["full"], rel=0.01)
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
    assert (tmp_path / "out" / "accuracy_cost.png").stat().st_size > 5000


def test_an_experiment_with_callbacks_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    stops = {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "stopping_threshold": 100}}
    others = ("ModelCheckpoint", "LearningRateMonitor", "DeviceStatsMonitor", "TQDMProgressBar")
    callbacks = [stops, *({"class_path": name} for name in others)]
    shorter = {"trainer.max_epochs": 3, "trainer.check_val_every_n_epoch": 1, "trainer.limit_train_batches": 8}
    overrides = {**shorter, "trainer.limit_val_batches": 1, "trainer.callbacks": callbacks}
    config = small(tmp_path, {"full": {}}, seeds=[1], overrides=overrides)
    benchmark_command(["--config", str(config)])
    assert read_results(tmp_path / "out" / "results.jsonl")[0]["steps"] == 8  # of 24
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["last.ckpt"]


METHODS = {
    "full": {},
    "linear": {
        "callback": "LinearFreezeCallback",
        "arguments": {"t_0": 0.3},
        "overrides": {"model.init_args.schedule": "constant"},
    },
    "random": {"callback": "RandomFreezeCallback", "arguments": {"timeline": "{linear}/freeze_timeline.csv"}},
    "shortened": {"share": 0.5},
}


def test_killed_and_started_again_ends_in_the_same_table(tmp_path):
    (tmp_path / "a").mkdir()
    whole = small(tmp_path / "a", METHODS)
    benchmark_command(["--config", str(whole)])
    expected = read_results(tmp_path / "a" / "out" / "results.jsonl")

    config = small(tmp_path, METHODS)
    command = [sys.executable, "-m", "smartfrz_lightning.cli", "benchmark", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    halfway = tmp_path / "out" / "seed1" / "linear" / "config.yaml"
    while not halfway.exists() and process.poll() is None:  # until the second run has begun
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


def test_methods_that_fail_do_not_stop_the_others(tmp_path, capsys):
    methods = {"full": {}, "static": {"callback": "StaticFreezeCallback", "arguments": {"layers": 99}}}
    methods |= {"odd": {"overrides": {"trainer.nope": 1}}, "after": {"overrides": {"x": "{odd}"}}, "plain": {}}
    methods["own"] = {"overrides": {"trainer.callbacks": [{"class_path": "StaticFreezeCallback"}]}}
    methods["brackets"] = {"callback": "StaticFreezeCallback", "arguments": {"exclude": ["[/head]"]}}
    with pytest.raises(SystemExit) as end:
        benchmark_command(["--config", str(small(tmp_path, methods, seeds=[1]))])
    assert end.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "static, seed 1: layers=99: ImageClassifier has 7 layers" in said
    assert "odd, seed 1: its config cannot be parsed" in said and said.count("'[/head]'") == 2
    assert "not run, as odd (seed 1) is missing: after, seed 1" in said
    assert "the experiment has a StaticFreezeCallback: take it out" in said
    assert [r["run"] for r in read_results(tmp_path / "out" / "results.jsonl")] == ["full", "plain"]


def test_the_epochs_of_a_run_are_shown_while_it_is_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    benchmark_command(["--config", str(small(tmp_path, {"full": {}}, seeds=[1]))])
    shown = capsys.readouterr().err
    assert all(f"{epoch}/4" in shown for epoch in (1, 2, 3, 4))


def test_a_metric_that_validation_does_not_log_is_told_after_the_first_one(tmp_path, capsys):
    config = small(tmp_path, {"full": {}}, seeds=[1], metric="nothing")
    spec = yaml.safe_load(config.read_text())
    spec["overrides"]["trainer.check_val_every_n_epoch"] = 2
    config.write_text(yaml.safe_dump(spec))
    with pytest.raises(SystemExit):
        benchmark_command(["--config", str(config)])
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("metric='nothing' is not there after the first validation: ['train_loss', 'val_accuracy',") == 1
    assert "metric='nothing': validation logs ['val_accuracy', 'val_loss']" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"full": {}, "a": {"callback": "StaticFreezCallback"}}}, "methods.a: .*StaticFreezCallback"),
        ({"methods": {"full": {}, "a": {"callback": "StaticFreezeCallback", "arguments": {"layer": 1}}}}, "layer"),
        ({"methods": {"full": {}, "a": {"callback": "EarlyStopping", "arguments": {"monitor": "x"}}}}, "report"),
        ({"methods": {"full": {}, "a": {"callbak": "StaticFreezeCallback"}}}, "callbak"),
        ({"experiment": ["nowhere.yaml"]}, "experiment='nowhere.yaml': no such file"),
        ({"baseline": "none"}, "baseline='none' is not one of"),
    ],
)
def test_what_is_misspelled_is_told_before_the_first_run(tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as end:
        benchmark_command(["--config", str(small(tmp_path, **{"methods": {"full": {}}, "seeds": [1], **changes}))])
    assert re.search(message, f"{end.value.code} {capsys.readouterr().err}", re.DOTALL)
    assert not (tmp_path / "out").exists()


def test_a_method_may_be_a_class_of_the_experiments_modules(tmp_path, monkeypatch):
    (tmp_path / "own_project.py").write_text(
        "from smartfrz_lightning import StaticFreezeCallback\n"
        "from smartfrz_lightning.experiments.classifier import ImageClassifier\n\n\n"
        "class OwnFreeze(StaticFreezeCallback):\n    pass\n\n\nclass OwnModel(ImageClassifier):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.yaml").write_text("model:\n  class_path: own_project.OwnModel\n")
    spec = {"experiment": [str(CONFIGS / "experiments" / "digits.yaml"), str(tmp_path / "own.yaml")]}
    config = small(tmp_path, {"full": {}, "own": {"callback": "OwnFreeze"}}, seeds=[1], **spec)
    benchmark_command(["--config", str(config)])
    assert [result["run"] for result in read_results(tmp_path / "out" / "results.jsonl")] == ["full", "own"]


def test_results_of_other_settings_are_not_mixed_in(tmp_path):
    benchmark_command(["--config", str(small(tmp_path, {"full": {}}, seeds=[1]))])
    other = small(tmp_path, {"full": {"overrides": {"trainer.max_epochs": 2}}}, seeds=[1])
    with pytest.raises(SystemExit, match="holds a result of 'full' with other settings"):
        benchmark_command(["--config", str(other)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "seeds=.*at least one"),
        ({"seeds": [1, 1]}, "each once"),
        ({"baseline": "none"}, "baseline='none' is not one of"),
        ({"methods": {"full": Run(), "b": Run(None, {"x": "{c}"})}}, "methods.b refers to .'c'."),
        ({"methods": {"full": Run(None, {"x": "{b}"}), "b": Run(None, {"x": "{full}"})}}, "wait for each other"),
        ({"methods": {"full": Run(), "full_0.5": Run()}, "frontier": [0.5]}, "share the names"),
    ],
)
def test_bad_specs(change, message):
    spec = {"experiment": [], "methods": {"full": Run()}, "seeds": [1]}
    with pytest.raises(ValueError, match=message):
        Benchmark(**{**spec, **change})


@pytest.mark.parametrize("how", [{"share": 1.5}, {"share": 0}, {"share": 0.5, "callback": "StaticFreezeCallback"}])
def test_a_shortened_run_trains_everything_for_a_share(how):
    with pytest.raises(ValueError, match="share=.*must lie between 0 and 1, in a run without a callback"):
        Run(**how)


def test_another_predictor_of_a_stage_makes_other_settings(tmp_path):
    path = tmp_path / "mine.safetensors"
    stage = {"class_path": "StartStage", "init_args": {"predictor": str(path)}}
    run = Run("SmartFreezeCallback", {"start": stage})
    benchmark = Benchmark(experiment=[], methods={"full": Run(), "mine": run}, seeds=[1])
    path.write_bytes(b"one")
    before = digest(benchmark, run)
    path.write_bytes(b"two")
    assert digest(benchmark, run) != before


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


def test_overrides_of_a_class_and_of_its_settings_in_any_order(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    data = {"data.init_args.batch_size": 500, "data": "smartfrz_lightning.experiments.images.DigitsDataModule"}
    methods = {"full": {"overrides": data}, "other": {"overrides": dict(reversed(data.items()))}}
    benchmark_command(["--config", str(small(tmp_path, methods, seeds=[1]))])
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert [result["steps"] for result in results] == [8, 8]  # two batches an epoch


def test_an_override_of_a_class_is_kept_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}  # params has no default
    config = small(tmp_path, {"full": {}, "adamw": {"overrides": {"model.init_args.optimizer": adamw}}}, seeds=[1])
    assert read_benchmark(["--config", str(config)]).methods["adamw"].overrides["model.init_args.optimizer"] == adamw
