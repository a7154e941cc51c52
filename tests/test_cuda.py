"""What a GPU does differently: kernels, mixed precision with a scaler, fused optimizers, its own random numbers."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from models import Classifier
from staging import ANYWAY, NOTHING, notes, smart, trained
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from smartfrz_lightning import StaticFreezeCallback

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

PRECISIONS = ("64-true", "32-true", "bf16-mixed", "16-mixed")


def resnet():
    return pytest.importorskip("torchvision").models.resnet18(num_classes=4)


def vit():
    return pytest.importorskip("timm").create_model("vit_tiny_patch16_224", img_size=64, num_classes=4)


class Pictures(Classifier):
    """Shuffled pictures; the last batch is a smaller one."""

    def train_dataloader(self):
        images = torch.rand(44, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        order = torch.Generator().manual_seed(self.current_epoch)
        return DataLoader(TensorDataset(images, torch.arange(44) % 4), 8, shuffle=True, generator=order)

    def val_dataloader(self):
        return self.train_dataloader()


def fit(make_trainer, net, callback, precision="32-true", optimizer=None, epochs=5):
    torch.manual_seed(1)
    model = Pictures(copy.deepcopy(net), optimizer or (lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)))
    callbacks = callback if isinstance(callback, list) else [callback]
    make_trainer(*callbacks, accelerator="gpu", precision=precision, max_epochs=epochs).fit(model)
    return model


@pytest.fixture(autouse=True)
def exact():
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", [resnet, vit])
def test_what_is_frozen_is_bitwise_still_and_the_rest_trains(make_trainer, network, precision):
    torch.manual_seed(0)
    net, freezer = network(), StaticFreezeCallback(layers=0.5)
    model = fit(make_trainer, net, freezer, precision, epochs=2)
    frozen = [layer for layer in freezer.layers if layer.name in freezer.frozen]
    inside = {name for layer in frozen for name in (*layer.parameters, *layer.stateful)}
    moved = set()
    for name, start in net.state_dict().items():
        if not torch.equal(model.net.state_dict()[name].cpu(), start.to(model.net.state_dict()[name].dtype)):
            moved |= {f"net.{name}", f"net.{name}".rpartition(".")[0]}
    assert frozen and moved and not moved & inside
    assert all(torch.isfinite(torch.tensor(model.losses)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_probe_leaves_no_trace_under_mixed_precision_and_fused_steps(make_trainer, precision):
    torch.manual_seed(0)
    net, seen = resnet(), {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen[trainer.global_step] = copy.deepcopy(pl_module.net.state_dict())

    probed = smart(NOTHING, probe=3)
    model = fit(
        make_trainer, net, [probed, Watch()], precision, lambda p: torch.optim.AdamW(p, 1e-3, fused=True), epochs=2
    )
    start = net.state_dict()
    assert all(torch.equal(tensor.cpu(), start[name]) for name, tensor in seen[3].items())
    assert "a probe of 3 steps" in notes(probed) and not probed.frozen
    assert not torch.equal(model.net.conv1.weight.cpu(), start["conv1.weight"])
    assert all(torch.isfinite(torch.tensor(model.losses)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_trial_that_changes_nothing_draws_and_leaves_nothing(make_trainer, precision):
    """The same dropout, the same losses, as if there had been no trial."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU())
    net.extend([nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)])
    trained(net)

    def losses(**how):
        freezer = smart(**how)
        return fit(make_trainer, net, freezer, precision, epochs=20).losses, notes(freezer)

    (tried, said), (untried, _) = losses(verdict=ANYWAY), losses(verify=False)
    assert "Trial" in said and tried == pytest.approx(untried, rel=1e-4)
