"""A second look at models whose copy is another one, fails, or cannot be made."""

import random

import numpy as np
import pytest
import torch
from conftest import mlp
from test_probe import InOrder
from test_second_look import EPOCHS, HELD, OPTIMIZERS, half_sure, looking, same
from torch import nn

from smartfrz_lightning.callbacks import look_beside


class Popping(InOrder):
    """Takes its batch apart, as is common with dicts."""

    def training_step(self, batch, batch_idx):
        batch[0].mul_(2)
        return super().training_step((batch.pop(0), batch.pop(0)), batch_idx)


class Mixing(InOrder):
    """Draws with NumPy and Python, and weighs its loss by the step."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        share = float(np.random.beta(1, 1)) * random.random()
        return super().training_step((share * x + (1 - share) * x.flip(0), y), batch_idx) * self.global_step


@pytest.mark.parametrize("kind", [Popping, Mixing])
def test_at_a_rate_of_zero_the_copy_is_the_model(make_trainer, monkeypatch, kind):
    freezer = looking(monkeypatch, release=False)
    model = kind(mlp(norm=False), lambda p: torch.optim.SGD(p, lr=0.0))
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
    assert freezer.timeline.look.gain == 0.0


class Holding(InOrder):
    """Computes its loss in a function that holds the network, which no copy is made of."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.loss = lambda x, y: nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch, batch_idx):
        return self.loss(*batch)


class Failing(InOrder):
    """Its step works only in the model that the Trainer knows."""

    def training_step(self, batch, batch_idx):
        assert self.trainer.lightning_module is self, "it is a copy"
        return super().training_step(batch, batch_idx)


class FailingLater(InOrder):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        assert self.trainer.lightning_module is self, "it is a copy"


class Growing(InOrder):
    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == 18 and self.trainer.lightning_module is self:
            self.trainer.optimizers[0].add_param_group({"params": [nn.Parameter(torch.ones(1))]})


MISHAPS = {Holding: "computes with its own weights", Failing: "it is a copy", FailingLater: "it is a copy"}
MISHAPS |= {Growing: "got other parameters"}


@pytest.mark.parametrize(("kind", "accumulate"), [*((kind, 1) for kind in MISHAPS), (Holding, 2)])
def test_what_goes_wrong_with_a_copy_does_not_touch_the_model(make_trainer, monkeypatch, kind, accumulate):
    def fit(**how):
        torch.manual_seed(3)
        model, freezer = kind(mlp(), OPTIMIZERS["adamw"]), looking(monkeypatch, release=True, **how)
        make_trainer(freezer, max_epochs=EPOCHS * accumulate, accumulate_grad_batches=accumulate).fit(model)
        return model, freezer

    with pytest.warns(UserWarning, match=f"no second look .*{MISHAPS[kind]}.*by the probe"):
        model, freezer = fit()
    other, _ = fit(second_look=False)
    assert same(model, other) and freezer.timeline.look is None and freezer.frozen == HELD


@pytest.mark.parametrize(("kind", "accumulate"), [(Holding, 1), (Failing, 2), (Growing, 1)])
def test_what_no_look_has_checked_comes_back(make_trainer, monkeypatch, kind, accumulate):
    freezer = half_sure(monkeypatch)
    trainer = make_trainer(freezer, max_epochs=EPOCHS * accumulate, accumulate_grad_batches=accumulate)
    with pytest.warns(UserWarning, match="no second look .* likelihood of 0.8, by the probe"):
        trainer.fit(kind(mlp()))
    assert freezer.timeline.start.held == HELD and freezer.frozen == HELD[:1] and freezer.timeline.look is None
    [thaw] = [event for event in freezer.timeline.events if event.kind == "thaw"]
    assert thaw.step == {Holding: 13, Failing: 13, Growing: 19}[kind]  # once the step is done that it went wrong in


REFUSED = {
    "manual optimization": "steps the optimizers itself",
    "cannot be copied": "cannot be copied",
    "backward": "it has backward of its own",
    "memory": "does not fit into the memory",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_where_no_copy_can_be_trained_what_is_likely_harmless_stays(make_trainer, monkeypatch, kind):
    class Odd(InOrder):
        def __init__(self):
            super().__init__(mlp())
            self.automatic_optimization = kind != "manual optimization"

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if kind == "cannot be copied":
                self.last = torch.ones(1, requires_grad=True) * 2  # not a leaf
            if kind == "manual optimization":
                optimizer = self.optimizers()
                self.manual_backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            return loss

    if kind == "backward":
        Odd.backward = lambda self, loss, *_, **__: loss.backward()
    if kind == "memory":
        monkeypatch.setattr(look_beside, "has_room", lambda module, optimizer, full_step: False)
    freezer = half_sure(monkeypatch, stays=0)
    with pytest.warns(UserWarning, match=f"no second look .* {REFUSED[kind]}.*by the probe"):
        make_trainer(freezer, max_epochs=EPOCHS).fit(Odd())
    assert freezer.frozen == HELD[:1] and freezer.timeline.look is None
    known_before = kind in ("manual optimization", "backward")
    assert freezer.timeline.start.held == (HELD[:1] if known_before else HELD)
