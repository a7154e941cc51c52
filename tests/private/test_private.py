"""What this package uses of PyTorch that is not public does what it is used for; most of it other tests need."""

import pytest
import torch
from torch import nn

from smartfrz_lightning.private import pytorch


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm1d, nn.SyncBatchNorm])
def test_norms_with_running_statistics(norm):
    assert isinstance(norm(2), pytorch.RunningNorm)


def test_the_older_spectral_norm():
    hooks = pytorch.module_hooks(nn.utils.spectral_norm(nn.Linear(2, 2)))["_forward_pre_hooks"]
    assert isinstance(next(iter(hooks.values())), pytorch.SpectralNorm)


def test_optimizers_that_step_in_the_backward_pass():
    parameter = nn.Parameter(torch.ones(1))
    assert not pytorch.steps_in_backward(parameter)
    parameter.register_post_accumulate_grad_hook(lambda p: None)
    assert pytorch.steps_in_backward(parameter)
