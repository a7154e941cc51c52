"""Two gloo processes against one: the same losses and weights, and no communication for what is frozen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ddp_worker import ManualSized, Sized, plain_net
from scripted import ScriptedFreeze

LAYERS = {"net.0": 8 * (12 * 16 + 16 + 16 + 16), "net.3": 8 * (16 * 16 + 16), "net.5": 8 * (16 * 3 + 3)}  # bytes


def two_processes(tmp_path, settings, worker="ddp_worker.py", survives=True):
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    worker = str(Path(__file__).with_name(worker))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", worker]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command.append(str(tmp_path / "settings.json"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == survives, done.stderr[-3000:]
    if not survives:
        return done.stderr
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(
    "settings",
    [
        {"script": {"2": [0]}},  # in the middle of an epoch
        {"script": {"4": [0], "8": [1]}, "ddp": {"gradient_as_bucket_view": True}},  # at its end, twice
        {"script": {"2": [1]}, "ddp": {"static_graph": True}},
        {"script": {"2": [0], "5": [1]}, "ddp": {"static_graph": True}, "manual": True},
        {"script": {"1": [0], "3": [1]}, "trainer": {"accumulate_grad_batches": 2}},
        {"script": {"2": [0]}, "size": 72},  # the last batch is half as long
    ],
    ids=["mid-epoch", "epoch end, bucket view", "static graph", "static graph, manual", "accumulation", "uneven"],
)
def test_as_one_process(make_trainer, tmp_path, settings):
    first, second = two_processes(tmp_path, settings)
    assert first["frozen"] == second["frozen"] != []
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name]), name

    kind = ManualSized if settings.get("manual") else Sized
    single = kind(plain_net().double(), settings.get("size", 64), 16)
    freezer = ScriptedFreeze({int(step): layers for step, layers in settings["script"].items()})
    make_trainer(freezer, precision="64-true", **settings.get("trainer", {})).fit(single)
    assert freezer.frozen == first["frozen"]
    assert len(single.losses) == len(first["losses"])
    for alone, *both in zip(single.losses, first["losses"], second["losses"], strict=True):
        assert alone == pytest.approx(sum(both) / 2, rel=1e-12)
    for name, tensor in single.state_dict().items():
        assert torch.allclose(tensor, first["weights"][name], rtol=1e-11, atol=1e-13), name


@pytest.mark.parametrize("ddp", [{}, {"static_graph": True}, {"find_unused_parameters": True}], ids=str)
def test_bytes_fall_by_the_frozen_share_and_the_users_hook_survives(tmp_path, ddp):
    first, _ = two_processes(tmp_path, {"script": {"3": [0], "7": [1]}, "ddp": ddp})
    everything = sum(LAYERS.values())
    expected = [everything] * 3 + [everything - LAYERS["net.0"]] * 4 + [LAYERS["net.5"]] * 5
    assert first["bytes"][:12] == expected


def test_killed_and_resumed_by_two_processes_and_by_one(make_trainer, tmp_path):
    script = {"2": [0], "7": [1]}
    whole, _ = two_processes(tmp_path, {"script": script})
    folder = tmp_path / "saved"
    two_processes(tmp_path, {"script": script, "kill": 10, "folder": str(folder)}, survives=False)
    last = folder / "epoch=1.ckpt"
    first, second = two_processes(tmp_path, {"script": script, "resume": str(last)})
    assert first["losses"] == whole["losses"][8:] and first["frozen"] == whole["frozen"]
    for name, tensor in whole["weights"].items():
        assert torch.equal(tensor, first["weights"][name]) and torch.equal(tensor, second["weights"][name]), name

    single, freezer = (
        Sized(plain_net().double(), 64, 16),
        ScriptedFreeze({int(step): layers for step, layers in script.items()}),
    )
    make_trainer(freezer, precision="64-true").fit(single, ckpt_path=last)
    assert freezer.frozen == whole["frozen"] and len(single.losses) == 4
    for name, tensor in whole["weights"].items():
        assert torch.allclose(single.state_dict()[name], tensor, rtol=1e-11, atol=1e-13), name


def test_fsdp2_as_one_process(make_trainer, tmp_path):
    script = {"3": [0], "8": [1]}
    first, second = two_processes(tmp_path, {"script": script}, "fsdp2_worker.py")
    single = Sized(plain_net(), 64, 16)
    freezer = ScriptedFreeze({int(step): layers for step, layers in script.items()})
    make_trainer(freezer).fit(single)
    assert first["layers"] == second["layers"] == [layer.name for layer in freezer.layers]
    assert first["frozen"] == second["frozen"] == freezer.frozen == ["net.0", "net.3"]
    assert first["saved"] == pytest.approx(freezer.timeline.saved, abs=0.01)
    for alone, *both in zip(single.losses, first["losses"], second["losses"], strict=True):
        assert alone == pytest.approx(sum(both) / 2, rel=1e-5)
    for name, tensor in single.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        assert torch.allclose(tensor, first["weights"][name], rtol=1e-4, atol=1e-6), name


def test_fsdp2_with_the_shipped_predictor(tmp_path):
    first, second = two_processes(tmp_path, {"script": {}}, "fsdp2_worker.py")
    assert first["frozen"] == second["frozen"] != []
    assert torch.equal(first["windows"], second["windows"])


@pytest.mark.parametrize(
    ("form", "when"),
    [
        ("sharded", 3),
        pytest.param("one file", 3, marks=pytest.mark.slow),
        pytest.param("sharded", 9, marks=pytest.mark.slow),
    ],
)
def test_fsdp2_resumes(tmp_path, form, when):
    """From a checkpoint after eight steps, with one layer frozen or none."""
    settings = {"script": {str(when): [0], "10": [1]}, "folder": str(tmp_path / "saved"), "sharded": form == "sharded"}
    whole, _ = two_processes(tmp_path, settings, "fsdp2_worker.py")
    resumed = {**settings, "resume": str(tmp_path / "saved" / "epoch=1.ckpt"), "folder": str(tmp_path / "again")}
    first, second = two_processes(tmp_path, resumed, "fsdp2_worker.py")
    assert first["frozen"] == second["frozen"] == whole["frozen"] == ["net.0", "net.3"]
    assert first["losses"] == whole["losses"][8:] and first["saved"] == whole["saved"]
    for name, tensor in whole["weights"].items():
        assert torch.equal(tensor, first["weights"][name]) and torch.equal(tensor, second["weights"][name]), name


@pytest.mark.slow
def test_fsdp2_resumes_the_history(tmp_path):
    settings = {"script": {}, "folder": str(tmp_path / "saved"), "threshold": 0.999}
    whole, _ = two_processes(tmp_path, settings, "fsdp2_worker.py")
    resumed = {**settings, "resume": str(tmp_path / "saved" / "epoch=0.ckpt"), "folder": str(tmp_path / "again")}
    first, _ = two_processes(tmp_path, resumed, "fsdp2_worker.py")
    assert torch.equal(first["windows"], whole["windows"])
