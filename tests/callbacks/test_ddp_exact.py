"""Two gloo processes under DDP against one: same losses and weights, no communication for what is frozen, resumed."""

import re

import pytest
import torch
from ddp_worker import ManualSized, Sized, freezing, plain_net
from lightning.pytorch.callbacks import ModelCheckpoint
from staging import notes
from two_processes import two_processes

LAYERS = {"net.0": 8 * (12 * 16 + 16 + 16 + 16), "net.3": 8 * (16 * 16 + 16), "net.5": 8 * (16 * 3 + 3)}  # bytes

CASES = {
    "mid-epoch": {"script": {"2": [0]}},
    "epoch end twice, bucket view": {"script": {"4": [0], "8": [1]}, "ddp": {"gradient_as_bucket_view": True}},
    "static graph": {"script": {"2": [1]}, "ddp": {"static_graph": True}},
    "static graph, manual": {"script": {"2": [0], "5": [1]}, "ddp": {"static_graph": True}, "manual": True},
    "accumulation": {"script": {"1": [0], "3": [1]}, "trainer": {"accumulate_grad_batches": 2}},
    "uneven": {"script": {"2": [0]}, "size": 72},  # the last batch is half as long
    "freeze, thaw, freeze": {"script": {"2": [0, 1], "9": [0]}, "thaw": {"5": [0]}},
    "thaw with accumulation": {
        "script": {"1": [0]},
        "thaw": {"3": [0]},
        "trainer": {"accumulate_grad_batches": 2},
    },
    "probe": {"start": {"probe_steps": 4, "threshold": 0.01}},
    "trial": {"trial": "own", "trainer": {"max_epochs": 30}},  # 120 steps, of which 12 to 24
    "trial, adopted": {"trial": "adopted", "trainer": {"max_epochs": 30}},
    "trial, then a budget": {"trial": "adopted", "save": 0.3, "trainer": {"max_epochs": 30}},
    "trial right after the probe, a part stays after two fifths": {
        "trial": "stays",
        "long": True,
        "trainer": {"max_epochs": 30},
    },
    "trial, accumulation and clipping": {
        "trial": "adopted",
        "trainer": {"max_epochs": 60, "accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    },
    "shipped predictor": {"attention": {"threshold": 0.2, "front_only": True, "snapshot_every_n_steps": 1}},
}
BYTES = {
    f"bytes {ddp}": {"script": {"3": [0], "7": [1]}, "ddp": ddp}
    for ddp in ({}, {"static_graph": True}, {"find_unused_parameters": True})
}
WHOLE = {"script": {"2": [0], "7": [1]}}
THAWS = {"script": {"2": [0, 1], "10": [0]}, "thaw": {"7": [0]}}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    fails = {"trial": "own", "fails": True, "trainer": {"max_epochs": 30}}
    plan = {"plan": True, "trainer": {"max_epochs": 30}}
    cases = {**CASES, **BYTES, "fails": fails, "plan": plan, "whole": WHOLE, "thaws": {**THAWS, "kill": 99}}
    return two_processes("ddp_worker.py", cases, tmp_path_factory.mktemp("ddp"))


def alone(make_trainer, settings, *callbacks, ckpt_path=None, **trainer):
    """The same run in one process, on the same batches."""
    kind = ManualSized if settings.get("manual") else Sized
    model = kind(plain_net().double(), settings.get("size", 64), 16)
    freezer = freezing(settings)
    trainer = {**settings.get("trainer", {}), **trainer}
    make_trainer(freezer, *callbacks, precision="64-true", **trainer).fit(model, ckpt_path=ckpt_path)
    return model, freezer


def check_ranks_equal(first, second):
    assert first["frozen"] == second["frozen"] and first["events"] == second["events"] != []
    torch.testing.assert_close(second["weights"], first["weights"], rtol=0, atol=0)


def _figures(text):
    """Without the standard error, which two processes take from half of the samples each."""
    return re.sub(r" ± \S+", "", text)


@pytest.mark.parametrize("case", CASES)
def test_as_one_process(make_trainer, outcomes, case):
    first, second = outcomes[case]
    check_ranks_equal(first, second)
    single, freezer = alone(make_trainer, CASES[case])
    assert freezer.frozen == first["frozen"]
    assert _figures(first["notes"]) == _figures(notes(freezer)) and ("Trial" in notes(freezer)) == ("trial" in case)
    assert first["confidences"] == second["confidences"]
    sure = [event.confidence or 0 for event in freezer.timeline.events]
    assert sure == pytest.approx([confidence or 0 for confidence in first["confidences"]], rel=1e-5)
    for one, *both in zip(single.losses, first["losses"], second["losses"], strict=True):
        assert one == pytest.approx(sum(both) / 2, rel=1e-12)
    for name, tensor in single.state_dict().items():
        assert torch.allclose(tensor, first["weights"][name], rtol=1e-11, atol=1e-13), name


def test_a_trial_that_fails_on_one_process_ends_on_both(outcomes):
    first, second = outcomes["fails"]
    check_ranks_equal(first, second)
    assert "it fails on another process" in first["notes"] and "out of memory" in second["notes"]


def test_a_plan_ends_on_both(outcomes):
    first, second = outcomes["plan"]
    assert first["events"] == second["events"] and first["pictures"] == ["freeze_plan.png"]


@pytest.mark.parametrize("case", BYTES)
def test_bytes_fall_by_the_frozen_share_and_the_users_hook_survives(outcomes, case):
    first, _ = outcomes[case]
    everything = sum(LAYERS.values())
    expected = [everything] * 3 + [everything - LAYERS["net.0"]] * 4 + [LAYERS["net.5"]] * 5
    assert first["bytes"][:12] == expected


def test_killed_and_resumed_by_as_many_processes_by_fewer_and_by_more(make_trainer, outcomes, tmp_path):
    whole, _ = outcomes["whole"]
    two_processes("ddp_worker.py", {"dies": {**WHOLE, "kill": 10}}, tmp_path, survives=False)
    last = str(tmp_path / "dies" / "epoch=1.ckpt")
    saved = ModelCheckpoint(tmp_path, "alone")
    alone(make_trainer, WHOLE, saved, max_epochs=2, enable_checkpointing=True)
    cases = {
        name: {**WHOLE, "resume": path} for name, path in {"two": last, "one": str(tmp_path / "alone.ckpt")}.items()
    }
    resumed = two_processes("ddp_worker.py", cases, tmp_path)
    for first, second in resumed.values():
        check_ranks_equal(first, second)
        assert first["frozen"] == whole["frozen"] and len(first["losses"]) == 4
        for name, tensor in whole["weights"].items():
            assert torch.allclose(tensor, first["weights"][name], rtol=1e-11, atol=1e-13), name
    first, _ = resumed["two"]
    assert first["losses"] == whole["losses"][8:] and first["frozen"] == whole["frozen"]
    torch.testing.assert_close(first["weights"], whole["weights"], rtol=0, atol=0)

    # Resumed with the layer frozen that thaws and freezes again; the checkpoint is one of the run itself.
    both = outcomes["thaws"]
    again = two_processes("ddp_worker.py", {"thaws": {**THAWS, "resume": both[0]["checkpoint"]}}, tmp_path / "thaws")
    for rank, thaws in zip(again["thaws"], both, strict=True):
        assert rank["events"] == thaws["events"] and rank["losses"] == thaws["losses"][4:]
        torch.testing.assert_close(rank["weights"], thaws["weights"], rtol=0, atol=0)

    single, freezer = alone(make_trainer, WHOLE, ckpt_path=last)
    assert freezer.frozen == whole["frozen"] and len(single.losses) == 4
    for name, tensor in whole["weights"].items():
        assert torch.allclose(single.state_dict()[name], tensor, rtol=1e-11, atol=1e-13), name
