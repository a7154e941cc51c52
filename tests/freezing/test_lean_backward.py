"""Frozen layers behind others that train: the same gradients as PyTorch's, and less kept for them."""

import copy

import pytest
import torch
from conftest import Classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedFreeze
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from smartfrz_lightning.cost.memory import SavedActivations
from smartfrz_lightning.freezing.freeze import freeze, hold_still
from smartfrz_lightning.freezing.lean_backward import LeanBackward
from smartfrz_lightning.layers import find_layers

CONVOLUTIONS = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d,)}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def gradients(net, x, lean=None, again=False):
    """Of the input, and of a penalty on that gradient."""
    x = x.clone().requires_grad_()
    if lean:
        lean.open()
    out = net(x)
    [grad] = torch.autograd.grad(out.square().sum(), x, create_graph=again)
    grads = [out.detach(), grad.detach()]
    if again:
        grads += torch.autograd.grad(grad.square().sum(), x)
    if lean:
        lean.close()
    return grads


@settings(max_examples=60, deadline=None)
@given(
    dimensions=st.integers(1, 3),
    transposed=st.booleans(),
    groups=st.sampled_from([1, 2, 4]),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    affine=st.booleans(),
    channels_last=st.booleans(),
)
def test_gradients_are_those_of_pytorch(
    dimensions, transposed, groups, stride, padding, mode, dilation, bias, affine, channels_last
):
    torch.manual_seed(0)
    kinds = CONVOLUTIONS[dimensions]
    transposed = transposed and len(kinds) > 1
    if padding == "same" and (transposed or stride > 1):
        padding = 1
    how = {} if transposed else {"padding_mode": mode}
    convolution = kinds[transposed](4, 8, 3, stride, padding, groups=groups, dilation=dilation, bias=bias, **how)
    norm = NORMS[dimensions](8, affine=affine)
    norm.running_mean.uniform_(), norm.running_var.uniform_(0.5, 2)
    net = nn.Sequential(convolution, norm).double().requires_grad_(False)
    hold_still(net, [])
    norm.eval()
    x = torch.rand(2, 4, *[7] * dimensions, dtype=torch.double)
    if channels_last and dimensions == 2:
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    plain, lean = gradients(net, x, again=True), gradients(net, x, LeanBackward(net), again=True)
    for one, other in zip(plain, lean, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12) and one.stride() == other.stride()


def test_gradcheck():
    net = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, stride=2), nn.BatchNorm2d(4)).double().eval().requires_grad_(False)
    net[1].running_var.uniform_(0.5, 2)
    lean, x = LeanBackward(net), torch.rand(2, 2, 6, 6, dtype=torch.double, requires_grad=True)
    lean.open()
    assert net(x).grad_fn.name() == "LeanBatchNormBackward"
    assert torch.autograd.gradcheck(net, x) and torch.autograd.gradgradcheck(net, x)
    lean.close()


def named(name):
    if name == "resnet18":
        return pytest.importorskip("torchvision").models.resnet18(num_classes=5)
    if name == "mobilenet_v2":
        return pytest.importorskip("torchvision").models.mobilenet_v2(num_classes=5)
    return pytest.importorskip("timm").create_model(name, num_classes=5)


# Which of three layers in a row are frozen, and the most that may be kept in comparison.
PATTERNS = {"all but the ends": lambda number, count: 0 < number < count - 1, "every second": lambda n, _: n % 2 == 1}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("name", "pattern", "share"),
    [
        ("resnet18", "all but the ends", 0.7),
        ("mobilenet_v2", "all but the ends", 0.4),
        ("mobilenet_v2", "every second", 0.85),
        ("tf_efficientnet_lite0", "all but the ends", 0.6),
    ],
)
def test_whole_networks_have_the_same_gradients_and_keep_less(name, pattern, share, autocast):
    torch.manual_seed(0)
    net = named(name).train()
    x = torch.rand(2, 3, 64, 64)
    layers = find_layers(net, x)
    frozen = [layer for number, layer in enumerate(layers) if PATTERNS[pattern](number, len(layers))]
    freeze(net, frozen)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    found = []
    for lean in (None, LeanBackward(net)):
        own = copy.deepcopy(net.state_dict())
        with SavedActivations(net) as saved, torch.autocast("cpu", torch.bfloat16, autocast):
            if lean:
                lean.open()
            loss = net(x).float().square().sum()
            loss.backward()
            if lean:
                lean.close()
        grads = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        net.zero_grad()
        net.load_state_dict(own)
        found.append((loss.item(), grads, saved.bytes))
    (loss, grads, kept), (same_loss, same_grads, less) = found
    assert loss == pytest.approx(same_loss, rel=1e-6)
    assert torch.linalg.norm(grads - same_grads) <= (2e-2 if autocast else 1e-5) * torch.linalg.norm(grads)
    assert less <= share * kept, less / kept


def test_modules_keep_type_state_and_hooks_and_nothing_is_left():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    net[1:3].requires_grad_(False)
    seen = []
    net[1].register_forward_hook(lambda *_: seen.append(True))
    before = [(type(module), sorted(vars(module))) for module in net.modules()]
    lean = LeanBackward(net)
    lean.open()
    state = set(net.state_dict())
    net(torch.rand(1, 3, 9, 9)).sum().backward()
    lean.close()
    assert [(type(module), sorted(vars(module))) for module in net.modules()] == before
    assert state == set(net.state_dict()) and seen == [True]


def test_what_trains_again_has_a_gradient_again():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3))
    net[1].requires_grad_(False)
    lean = LeanBackward(net)
    lean.open()
    net[1].requires_grad_(True)  # in the middle of a batch
    net(torch.rand(1, 3, 9, 9)).sum().backward()
    assert net[1].weight.grad.abs().sum() > 0
    lean.close()


def test_compiled_models_are_left_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    net[1].requires_grad_(False)
    net.compile(backend="eager")
    lean = LeanBackward(net)
    lean.open()
    assert not any("forward" in vars(module) for module in net.modules())


class Pictures(Classifier):
    def __init__(self):
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
        super().__init__(nn.Sequential(*convolutions, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 3)))

    def train_dataloader(self):
        x = torch.rand(22, 3, 9, 9, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, torch.arange(22) % 3), 5)

    def val_dataloader(self):
        return self.train_dataloader()


def test_in_a_fit_it_keeps_less_and_changes_nothing(make_trainer, monkeypatch):
    def fit(lean):
        with monkeypatch.context() as patch:
            if not lean:
                patch.setattr(LeanBackward, "open", lambda self: None)
            model, freezer = Pictures(), ScriptedFreeze({2: [1], 7: [2]}, {11: [1]})
            make_trainer(freezer, max_epochs=3).fit(model)
        return model, [state.saved_bytes for state in freezer.timeline.states]

    (plain, bytes_plain), (lean, bytes_lean) = fit(False), fit(True)
    assert lean.losses == pytest.approx(plain.losses, rel=1e-5)
    # The states: everything trains; the second layer is frozen, and the third; the second trains again.
    assert len(bytes_lean) == 4 and bytes_lean[0] == bytes_plain[0]
    assert [less < more for less, more in zip(bytes_lean, bytes_plain, strict=True)] == [
        False,
        True,
        True,
        False,
    ]  # what feeds the third layer, the ReLU before it keeps in any case
    assert not any("forward" in vars(module) for module in lean.modules())
