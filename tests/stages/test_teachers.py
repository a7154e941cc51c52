"""The trial and what a model keeps out of its parameters: teachers in lists, averages of the weights, arrays."""

import copy

import numpy as np
import pytest
import torch
from models import Vectors
from staging import ANYWAY, EPOCHS, OPTIMIZERS, InOrder, fitted, notes, quiet_mlp, same, smart
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Taught(InOrder):
    """Learns from a teacher that follows its weights after every step, and counts the classes in an array."""

    def __init__(self):
        super().__init__(quiet_mlp(), OPTIMIZERS["adamw"])
        self.seen = np.zeros(3)
        self.keep(copy.deepcopy(self.net).requires_grad_(False).eval())

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            target = self.teacher()(batch[0])
        np.add.at(self.seen, batch[1].numpy(), 1)
        return super().training_step(batch, batch_idx) + nn.functional.mse_loss(self.net(batch[0]), target)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for average, parameter in zip(self.teacher().parameters(), self.net.parameters(), strict=True):
                average.lerp_(parameter, 0.1)


class InList(Taught):
    def keep(self, teacher):
        self.others = [teacher]

    def teacher(self):
        return self.others[0]


class Unregistered(Taught):
    def keep(self, teacher):
        object.__setattr__(self, "other", teacher)

    def teacher(self):
        return self.other


class Averaged(InList):
    def keep(self, teacher):
        self.others = [AveragedModel(teacher, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.teacher().update_parameters(self.net)


@pytest.mark.parametrize("kind", [InList, Unregistered, Averaged])
def test_a_trial_that_changes_nothing_leaves_no_trace_in_what_is_no_submodule(make_trainer, kind):
    tried, freezer, _ = fitted(make_trainer, kind, smart(verdict=ANYWAY))
    plain, *_ = fitted(make_trainer, kind, smart(verify=False))
    assert "the prefix stays frozen" in notes(freezer)
    assert tried.losses == plain.losses and same(tried, plain) and same(tried.teacher(), plain.teacher())
    assert tried.seen.tolist() == plain.seen.tolist() and tried.seen.sum() == EPOCHS * len(Vectors())
