"""Training loops of one's own in two processes: as one process does it, and frozen parameters are not communicated."""

import re

import pytest
import torch
from ddp_worker import plain_net
from loop_worker import train
from models import Vectors, Within, sgd
from staging import notes
from torch.utils.data import DataLoader
from two_processes import two_processes

SCRIPT = {"script": {"2": [0, 1], "9": [0]}, "thaw": {"6": [0]}}
CASES = {
    "by Fabric": {**SCRIPT, "by": "fabric"},  # first: it wants to start the processes' group itself
    "by hand": {**SCRIPT, "by": "hand"},
    "by hand, bucket view": {**SCRIPT, "by": "hand", "view": True},
}
LOST = {"by": "hand", "lost": True}
LATER = {"by": "hand", "later": True}
LAYERS = {"net.net.0": 8 * (12 * 16 + 16 + 16 + 16), "net.net.3": 8 * (16 * 16 + 16), "net.net.5": 8 * (16 * 3 + 3)}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return two_processes("loop_worker.py", {**CASES, "lost": LOST, "later": LATER}, tmp_path_factory.mktemp("loops"))


def alone(settings):
    """The same run in one process, on the same batches."""
    net = Within(plain_net()).double()
    loader = DataLoader(Vectors(64), 16)
    return net, *train(net, sgd(net.parameters()), loader, settings, lambda loss: loss.backward())


@pytest.mark.parametrize("case", CASES)
def test_as_one_process(outcomes, case):
    first, second = outcomes[case]
    net, freezer, losses = alone(SCRIPT)
    events = [(event.layer, event.kind, event.step) for event in freezer.timeline.events]
    assert first["events"] == second["events"] == events and len(events) == 4
    for one, *both in zip(losses, first["losses"], second["losses"], strict=True):
        assert one == pytest.approx(sum(both) / 2, rel=1e-12)
    for name, tensor in net.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        assert torch.allclose(tensor, first["weights"][name], rtol=1e-11, atol=1e-13), name


@pytest.mark.parametrize("case", CASES)
def test_a_trial_in_several_processes_is_not_for_loops_of_ones_own(outcomes, case):
    assert outcomes[case][0]["cannot_verify"] == "a loop of your own has several processes"


@pytest.mark.parametrize("case", ["by hand", "by hand, bucket view"])
def test_bytes_fall_and_rise_with_what_trains_and_the_users_hooks_survive(outcomes, case):
    first, _ = outcomes[case]
    stem, middle, head = LAYERS.values()
    everything = [stem + middle + head] * 2
    assert first["bytes"] == everything + [head] * 4 + [stem + head] * 3 + [head] * 3
    assert first["calls"] == 12


def test_a_name_that_is_no_layer_is_refused_in_both_processes(outcomes):
    assert [outcome["error"] for outcome in outcomes["lost"]] == 2 * [
        "Lost.select returned ['net.99'], which are no layers' names"
    ]


def test_the_third_stage_goes_by_the_loss_of_both_processes(outcomes):
    first, second = outcomes["later"]
    _, freezer, _ = alone(LATER)
    assert first["events"] == second["events"] != [] and first["notes"] == notes(freezer)
    assert re.search(r"with the training loss at 0\.\d\d of its value at the start", first["notes"])
