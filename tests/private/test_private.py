"""What this package uses of PyTorch and Lightning that is not public does what it is used for."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from models import Classifier, mlp
from torch import nn

from smartfrz_lightning.private import pytorch, trainer

USED_ELSEWHERE = {
    "bucket_megabytes",
    "communication_hooks",
    "module_hooks",
    "torch_is_older",
    "compile_config",
    "in_backward",
    "is_compiled",
}


def dispatch_mode():
    seen = []

    class Mode(pytorch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        nn.Linear(3, 2)(torch.rand(4, 3)).sum().backward()
    return len(seen) > 3 and all(hasattr(func, "overloadpacket") for func in seen)


def drawn_again():
    device = torch.device("cpu")
    states, drawn = pytorch.random_states(device), torch.rand(2)
    after = torch.get_rng_state()
    with pytorch.drawing_from(states, device):
        again = torch.rand(2)
    return again.equal(drawn) and torch.get_rng_state().equal(after)


def gradient_hooks():
    old, new = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    old.register_hook(lambda grad: 2 * grad)
    pytorch.register_gradient_hooks(new, old)
    new.sum().backward()
    return new.grad == 2


def steps_in_backward():
    parameter = nn.Parameter(torch.ones(1))
    before = pytorch.steps_in_backward(parameter)
    parameter.register_post_accumulate_grad_hook(lambda p: None)
    return not before and pytorch.steps_in_backward(parameter)


CHECKS = {
    "Convolution": lambda: isinstance(nn.ConvTranspose1d(2, 2, 1), pytorch.Convolution),
    "RunningNorm": lambda: all(
        isinstance(norm(2), pytorch.RunningNorm) for norm in (nn.BatchNorm2d, nn.InstanceNorm1d, nn.SyncBatchNorm)
    ),
    "SpectralNorm": lambda: isinstance(
        next(iter(pytorch.module_hooks(nn.utils.spectral_norm(nn.Linear(2, 2)))["_forward_pre_hooks"].values())),
        pytorch.SpectralNorm,
    ),
    "HigherOrderOperator": lambda: isinstance(torch.ops.higher_order.cond, pytorch.HigherOrderOperator),
    "TorchDispatchMode": dispatch_mode,
    "drawing_from": drawn_again,
    "gives_a_number": lambda: (
        [
            pytorch.gives_a_number(loss.grad_fn)
            for x in [torch.ones(1, requires_grad=True)]
            for loss in (x.sum(), x.exp())
        ]
        == [True, False]
    ),
    "random_states": drawn_again,
    "register_gradient_hooks": gradient_hooks,
    "sequence_number": lambda: (
        torch.ones(1, requires_grad=True).exp().grad_fn._sequence_nr() < pytorch.sequence_number()
    ),
    "steps_in_backward": steps_in_backward,
    "tensors_in": lambda: len(pytorch.tensors_in({"a": [torch.ones(1), 2], "b": (torch.ones(2),)})) == 2,
    "tree_leaves": lambda: pytorch.tree_leaves({"a": [1, "b"], "c": 2}) == [1, "b", 2],
    "tree_map_only": lambda: pytorch.tree_map_only(int, lambda n: n + 1, {"a": [1, "b"]}) == {"a": [2, "b"]},
}


@pytest.mark.parametrize("name", sorted(set(pytorch.__all__) - USED_ELSEWHERE))
def test_private_part_of_pytorch(name):
    assert CHECKS[name]()


def test_the_last_epoch_of_weight_averaging_is_known(make_trainer):
    class Watch(Callback):
        known = []

        def on_train_batch_start(self, trainer_, *_):
            self.known.append(trainer.trains_statistics_only(trainer_))

    watch = Watch()
    watch.known = []
    averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)
    make_trainer(watch, averaging, max_epochs=3, limit_val_batches=0).fit(Classifier(mlp()))
    assert watch.known == [False] * 24 + [True] * 8
