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
from smartfrz_lightning.cache.front_cache import FrontCache
from smartfrz_lightning.cache.rows import row_digests

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

PRECISIONS = ("64-true", "32-true", "bf16-mixed", "16-mixed")


def resnet():
    return pytest.importorskip("torchvision").models.resnet18(num_classes=4)


def efficientnet():
    net = pytest.importorskip("timm").create_model("tf_efficientnet_lite0", num_classes=4)
    for module in net.modules():
        if hasattr(module, "drop_rate"):
            module.drop_rate = 0.0
    return net


def vit():
    return pytest.importorskip("timm").create_model("vit_tiny_patch16_224", img_size=64, num_classes=4)


NETWORKS = {"resnet": resnet, "efficientnet": efficientnet, "vit": vit}


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
def exact(monkeypatch):
    monkeypatch.setattr(FrontCache, "_judge", lambda *_: None)  # small networks pay
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_cached_front_trains_as_one_that_runs(make_trainer, network, precision):
    torch.manual_seed(0)
    net = NETWORKS[network]()
    fits = []
    for cache in (False, True):
        callback = StaticFreezeCallback(layers=0.5, cache_front=cache)
        fits.append((fit(make_trainer, net, callback, precision).losses, callback))
    (plain, _), (cached, callback) = fits
    assert callback.timeline.cache.hits > 50, callback.timeline.cache
    # Kernels depend on who shares a batch: losses agree to rounding, which training amplifies from step to step.
    if precision == "64-true":
        assert cached == pytest.approx(plain, rel=1e-6)
        return
    assert cached[:6] == pytest.approx(plain[:6], rel=1e-5 if precision == "32-true" else 2e-2)
    assert cached[:12] == pytest.approx(plain[:12], rel=5e-3 if precision == "32-true" else 0.2, abs=0.02)


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


def test_keys_are_those_of_the_cpu():
    for rows in (torch.rand(5, 3, 40, 40), torch.randint(99, (4, 7)), torch.rand(2, 9).bfloat16()):
        assert row_digests(rows) == row_digests(rows.cuda())


def test_the_memory_of_the_cache_is_given_back(make_trainer):
    torch.manual_seed(0)
    net = resnet()
    fit(make_trainer, net, StaticFreezeCallback(layers=0.5), epochs=1)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    callback = StaticFreezeCallback(layers=0.5, cache_front=True)
    fit(make_trainer, net, callback)
    assert callback.timeline.cache.hits > 50
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_its_random_numbers_do_not_come_from_a_cache(make_trainer):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.front, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            h = self.front(x)
            return self.head((h + torch.randn_like(h)).mean((2, 3)))

    torch.manual_seed(0)
    net, fits = Noisy(), []
    for cache in (False, True):
        fits.append(fit(make_trainer, net, StaticFreezeCallback(layers=0.5, cache_front=cache)).losses)
    assert fits[1] == pytest.approx(fits[0], rel=1e-4)


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
