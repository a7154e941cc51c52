"""Two gloo processes under FSDP2 (``ModelParallelStrategy``): as one process does it, and resumed bitwise."""

import pytest
import torch
from ddp_worker import Sized, freezing, plain_net
from scripted import ScriptedFreeze
from two_processes import two_processes

SCRIPT = {"script": {"3": [0], "8": [1]}}
# Resumed after eight steps, with one layer frozen or none; the last one with the shipped predictor, after four.
RESUMED = {
    "sharded": {"script": {"3": [0], "10": [1]}, "sharded": True},
    "one file": {"script": {"3": [0], "10": [1]}, "sharded": False},
    "freezes later": {"script": {"9": [0], "10": [1]}, "sharded": True},
}
# Resumed while the layer is frozen that thaws and freezes again, and at the very step after which it thawed.
THAWS = {
    "thaws later": {"script": {"3": [0], "11": [0]}, "thaw": {"9": [0]}, "sharded": True},
    "has just thawed": {"script": {"3": [0], "10": [0]}, "thaw": {"8": [0]}, "sharded": True},
    "has just thawed, one file": {"script": {"3": [0], "10": [0]}, "thaw": {"8": [0]}, "sharded": False},
}
PROBE = {"start": {"probe_steps": 4, "threshold": 0.01}}
LATER = {"trial": "own", "long": True, "probe": 2}
ATTENTION = {"threshold": 0.01, "front_only": True, "snapshot_every_n_steps": 1}
HISTORY = {"attention": {**ATTENTION, "threshold": 0.999}, "sharded": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def outcomes(folder):
    cases = {
        "script": SCRIPT,
        "predictor": {"attention": ATTENTION},
        "probe": PROBE,
        "later": LATER,
        **RESUMED,
        **THAWS,
        "history": HISTORY,
    }
    return two_processes("fsdp2_worker.py", cases, folder)


@pytest.fixture(scope="module")
def resumed(outcomes, folder):
    cases = {
        name: {**settings, "resume": str(folder / name / "epoch=1.ckpt")}
        for name, settings in {**RESUMED, **THAWS}.items()
    }
    cases["history"] = {**HISTORY, "resume": str(folder / "history" / "epoch=0.ckpt")}
    return two_processes("fsdp2_worker.py", cases, folder / "resumed")


def test_as_one_process(make_trainer, outcomes):
    first, second = outcomes["script"]
    single = Sized(plain_net(), 64, 16)
    freezer = ScriptedFreeze({int(step): layers for step, layers in SCRIPT["script"].items()})
    make_trainer(freezer).fit(single)
    assert first["layers"] == second["layers"] == [layer.name for layer in freezer.layers]
    assert first["frozen"] == second["frozen"] == freezer.frozen == ["net.0", "net.3"]
    assert first["saved"] == pytest.approx(freezer.timeline.saved, abs=0.01)
    for alone, *both in zip(single.losses, first["losses"], second["losses"], strict=True):
        assert alone == pytest.approx(sum(both) / 2, rel=1e-5)
    for name, tensor in single.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        assert torch.allclose(tensor, first["weights"][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("case", ["probe", "later"])
def test_the_start_stage_decides_as_in_one_process(make_trainer, outcomes, case):
    first, second = outcomes[case]
    single, freezer = Sized(plain_net(), 64, 16), freezing({"probe": PROBE, "later": {**LATER, "trial": "own"}}[case])
    make_trainer(freezer).fit(single)
    events = [(event.layer, event.kind, event.step) for event in freezer.timeline.events]
    if case == "probe":
        assert first["events"] == second["events"] == events != []
        for name, tensor in single.state_dict().items():
            assert torch.allclose(tensor, first["weights"][name], rtol=1e-4, atol=1e-6), name
    else:  # sharded weights cannot be tried: what is safe without a trial freezes, and that is said
        assert first["events"] == second["events"] and ("net.0", "freeze", 2) in first["events"]
        assert "cannot be tried: strategy=ModelParallelStrategy" in first["notes"][0]


def test_with_the_shipped_predictor(outcomes):
    first, second = outcomes["predictor"]
    assert first["frozen"] == second["frozen"] != []
    assert torch.equal(first["windows"], second["windows"])


@pytest.mark.parametrize("case", {**RESUMED, **THAWS})
def test_resumes(outcomes, resumed, case):
    whole, _ = outcomes[case]
    assert [kind for _, kind, _ in whole["events"]] in (["freeze", "freeze"], ["freeze", "thaw", "freeze"])
    for rank in resumed[case]:
        assert rank["events"] == whole["events"] and rank["saved"] == whole["saved"]
        torch.testing.assert_close(rank["weights"], whole["weights"], rtol=0, atol=0)
    assert resumed[case][0]["losses"] == whole["losses"][8:]


def test_resumes_the_history(outcomes, resumed):
    assert torch.equal(resumed["history"][0]["windows"], outcomes["history"][0]["windows"])
