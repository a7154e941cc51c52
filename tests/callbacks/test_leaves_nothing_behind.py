"""After any fit everything is as it was: modes, hooks, the compiler's stance; and nothing of the model is kept."""

import contextlib
import copy
import csv
import gc
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from models import Classifier, Vectors, mlp
from scripted import ScriptedFreeze
from torch import nn
from torch.utils._python_dispatch import _len_torch_dispatch_stack
from torch.utils.data import DataLoader

from smartfrz_lightning import (
    AttentionFreezeCallback,
    AutoFreezeCallback,
    HistoryRecorder,
    LinearFreezeCallback,
    MovementFreezeCallback,
    SmartFreezeCallback,
    StaticFreezeCallback,
)
from smartfrz_lightning.engine import Freezer
from smartfrz_lightning.layers import find_layers
from smartfrz_lightning.stages import StartStage

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
QUIET |= {"enable_model_summary": False, "limit_val_batches": 0}


def surroundings():
    """What the process has on, whoever put it on."""
    return {
        "dispatch modes": _len_torch_dispatch_stack(),
        "function modes": torch._C._len_torch_function_stack(),
        "stance": torch._dynamo.eval_frame._stance.stance,
        "saved tensor hooks": torch.autograd.graph.disable_saved_tensors_hooks.__name__,
    }


class Breaks(Callback):
    """Skips or fails at a place and a batch."""

    def __init__(self, place, batch, kind):
        self.place, self.batch, self.kind = place, batch, kind
        setattr(self, place, self._hook)

    def _hook(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx == self.batch:
            if self.kind is None:
                return -1
            raise self.kind
        return None


PLACES = ["on_train_batch_start", "on_before_backward", "on_after_backward", "on_train_batch_end"]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_after_any_fit_modes_and_hooks_are_as_before(data):
    place = data.draw(st.sampled_from(PLACES))
    kinds = [RuntimeError("broke"), KeyboardInterrupt()] + [None] * (place == "on_train_batch_start")
    breaks = Breaks(place, data.draw(st.integers(0, 6)), data.draw(st.sampled_from(kinds)))
    freezer = ScriptedFreeze({2: [0], 5: [1]}, {4: [0]}, report=False)
    callbacks = [freezer, breaks] if data.draw(st.booleans()) else [breaks, freezer]
    if data.draw(st.booleans()):
        callbacks.append(StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1))
    several_closures = data.draw(st.booleans())
    make = (lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3)) if several_closures else None
    before, model = surroundings(), Classifier(mlp(), make)
    trainer = Trainer(max_epochs=data.draw(st.integers(1, 3)), callbacks=callbacks, **QUIET)
    with contextlib.suppress(RuntimeError, KeyboardInterrupt, SystemExit):
        trainer.fit(model)
    assert surroundings() == before
    for optimizer in trainer.optimizers:
        assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    again = ScriptedFreeze({2: [0]}, report=False)
    Trainer(max_epochs=1, callbacks=[again], **QUIET).fit(model)
    assert again.frozen == ["net.0"] and surroundings() == before


class Functional(Classifier):
    """Transforms of torch.func and a conditional inside of the training step."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        slope = torch.func.jacrev(lambda one: self.net(one[None])[0])(x[0])
        each = torch.func.vmap(lambda one: one.sin().sum())(x)
        turned = torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (x,))
        loss = super().training_step((x + 0.01 * turned, y), batch_idx)
        return loss + 1e-3 * slope.square().mean() + 1e-3 * each.mean()


def test_transforms_and_higher_order_operators_cost_a_warning_at_most(make_trainer):
    before = surroundings()
    plain, watched, freezer = Functional(mlp(norm=False)), Functional(mlp(norm=False)), ScriptedFreeze({4: [1]})
    torch.manual_seed(3)
    make_trainer(max_epochs=1, limit_val_batches=0).fit(plain)
    torch.manual_seed(3)
    make_trainer(freezer, max_epochs=1, limit_val_batches=0).fit(watched)
    # The Jacobian ends with the first layer's weights, which so lead to the loss as well.
    assert freezer.layers[0].always_trains == "output" and freezer.frozen == ["net.4"]
    assert watched.losses[:4] == plain.losses[:4]
    assert surroundings() == before


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_patterns_for_a_model_that_is_built_late(make_trainer, tmp_path, hook):
    class Late(Classifier):
        def __init__(self):
            super().__init__(nn.Identity())

        def setup(self, stage):
            if hook == "setup":
                self.net = mlp()

        def configure_model(self):
            if hook == "configure_model" and isinstance(self.net, nn.Identity):
                self.net = mlp()

    freezer = ScriptedFreeze({4: [0, 1]}, exclude="net.4")
    make_trainer(freezer, max_epochs=1).fit(Late())
    assert freezer.frozen == ["net.0"]
    torch.save({"state_dict": Classifier(mlp()).state_dict()}, tmp_path / "end.ckpt")
    paths = str(tmp_path / "end.ckpt"), str(tmp_path / "run.safetensors")
    recorder = HistoryRecorder(*paths, checks_per_epoch=2, probe_examples=61)
    make_trainer(recorder, max_epochs=1, num_sanity_val_steps=2).fit(Late())
    assert (tmp_path / "run.safetensors").exists()


def test_a_cache_that_is_made_in_the_first_call():
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            if not hasattr(self, "mask"):
                self.register_buffer("mask", torch.ones(4))
            return self.head(self.layer(x) * self.mask)

    assert [layer.name for layer in find_layers(Caches(), torch.rand(2, 4))] == ["layer", "head"]


def test_a_new_callback_lets_train_what_an_earlier_one_froze(make_trainer):
    class OnlyWhatTrains(Classifier):
        def configure_optimizers(self):
            return self.make(parameter for parameter in self.parameters() if parameter.requires_grad)

    model = OnlyWhatTrains(mlp())
    model.net[4].requires_grad_(False)  # the user's own
    first, second = ScriptedFreeze({4: [0]}), ScriptedFreeze({})
    make_trainer(first, max_epochs=1).fit(model)
    frozen = model.net[0].weight.detach().clone()
    assert first.frozen == ["net.0"]
    trainer = make_trainer(second, max_epochs=1)
    trainer.fit(model)
    assert "net.0" in [layer.name for layer in second.layers] and not torch.equal(frozen, model.net[0].weight)
    assert not model.net[4].weight.requires_grad and "net.4" not in [layer.name for layer in second.layers]


def test_a_model_that_is_pickled_after_a_run_needs_nothing_of_this_package():
    net, freezer = mlp(), ScriptedFreeze({1: [0]})
    engine = Freezer(net, torch.optim.SGD(net.parameters(), 0.1), freezer)
    with engine.batch():
        net(torch.rand(8, 12)).sum().backward()
        engine.run.optimizers[0].step()
    engine.end()
    assert engine.run.frozen == ["0"] and b"smartfrz_lightning" not in pickle.dumps(net)


def test_a_callback_thaws_what_it_froze(make_trainer):
    model, freezer = Classifier(mlp()), ScriptedFreeze({4: [0, 1]})
    make_trainer(freezer, max_epochs=1).fit(model)
    assert not model.net[0].weight.requires_grad and not model.net[1].training
    freezer.thaw()
    assert all(parameter.requires_grad for parameter in model.parameters()) and freezer.frozen == []
    before = copy.deepcopy(model.state_dict())
    make_trainer(freezer, max_steps=3).fit(model)
    assert freezer.frozen == [] and not any(torch.equal(before[n], p) for n, p in model.named_parameters())


METHODS = {
    "smart": lambda: AttentionFreezeCallback(threshold=0.9, front_only=True, snapshot_every_n_steps=1),
    "smart, probe": lambda: SmartFreezeCallback(StartStage(probe_steps=3), verify=False, save=0.3),
    "movement": lambda: MovementFreezeCallback(window=4, snapshot_every_n_steps=1),
    "auto": lambda: AutoFreezeCallback(percentile=70),
    "linear": lambda: LinearFreezeCallback(),
    "static": lambda: StaticFreezeCallback(layers=2),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_model_that_is_made_after_a_callback_has_the_same_first_weights(name):
    before = torch.get_rng_state()
    METHODS[name]()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", METHODS)
def test_a_callback_can_be_pickled_and_keeps_no_model_alive(make_trainer, name):
    freezer, model = METHODS[name](), Classifier(mlp())
    trainer = make_trainer(freezer, max_epochs=2)
    trainer.fit(model)
    frozen = freezer.frozen
    assert pickle.loads(pickle.dumps(freezer)).frozen == copy.deepcopy(freezer).frozen == frozen
    gone = weakref.ref(model.net)
    del model, trainer
    gc.collect()
    assert gone() is None and freezer.frozen == frozen


def test_a_saved_state_does_not_move_with_the_training():
    net = mlp(norm=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    freezer = Freezer(
        net, optimizer, AttentionFreezeCallback(threshold=0.9, front_only=True, snapshot_every_n_steps=1, window=3)
    )
    states = []
    for x, y in DataLoader(Vectors(), 8):
        with freezer.batch((x, y)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        states.append(freezer.state_dict())
    freezer.end()
    rings = [state["method"]["history"]["ring"].clone() for state in states]
    assert all(torch.equal(a, s["method"]["history"]["ring"]) for a, s in zip(rings, states, strict=True))
    assert not torch.equal(rings[0], rings[-1])


def test_a_users_metric_by_the_name_frozen_stays(make_trainer, tmp_path):
    class Logs(Classifier):
        def training_step(self, batch, batch_idx):
            self.log("frozen", 42.0, prog_bar=True)
            return super().training_step(batch, batch_idx)

    freezer, how = ScriptedFreeze({4: [0]}), {"logger": CSVLogger(tmp_path), "limit_val_batches": 0}
    trainer = make_trainer(freezer, max_epochs=1, limit_train_batches=7, log_every_n_steps=2, **how)
    trainer.fit(Logs(mlp()))
    assert trainer.progress_bar_metrics["frozen"] == 42 and trainer.progress_bar_metrics["freeze/layers"] == 1
    assert trainer.callback_metrics["frozen"] == 42 and trainer.callback_metrics["freeze/layers"] == 1
    rows = [line.split(",") for line in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()]
    at = {name: rows[0].index(name) for name in ("step", "freeze/layers", "freeze/flops_saved")}
    curve = [(int(row[at["step"]]), float(row[at["freeze/layers"]])) for row in rows[1:] if row[at["freeze/layers"]]]
    assert curve == [(1, 0), (3, 1), (5, 1)]
    assert float(trainer.callback_metrics["freeze/flops_saved"]) == pytest.approx(freezer.timeline.saved)
    saved = [float(row[at["freeze/flops_saved"]]) for row in rows[1:] if row[at["freeze/flops_saved"]]]
    assert saved == sorted(saved) and saved[0] == 0 < saved[-1] < 1


def test_what_is_logged_goes_by_the_steps_of_the_trainer(make_trainer, tmp_path):
    """Also after a resume from a checkpoint of a run without the callback."""
    saved = ModelCheckpoint(tmp_path, "plain")
    make_trainer(saved, max_epochs=1, enable_checkpointing=True).fit(Classifier(mlp()))
    settings = {"max_epochs": 2, "logger": CSVLogger(tmp_path), "log_every_n_steps": 2, "limit_val_batches": 0}
    make_trainer(ScriptedFreeze({4: [0]}), LearningRateMonitor("step"), **settings).fit(
        Classifier(mlp()), ckpt_path=tmp_path / "plain.ckpt"
    )
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = {name: [row["step"] for row in rows if row[name]] for name in ("freeze/layers", "lr-SGD")}
    assert steps["freeze/layers"] == steps["lr-SGD"] == ["9", "11", "13", "15"]
