"""A BatchNorm that freezes takes the mean of some batches as its statistics, then is still; also when resumed."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, mlp
from scripted import ScriptedFreeze
from torch import nn

from smartfrz_lightning import StaticFreezeCallback


@pytest.fixture(autouse=True)
def four_batches(monkeypatch):
    monkeypatch.setattr("smartfrz_lightning.engine.frozen.RECALIBRATION_SHARE", 0.1)  # of 40 batches


class Long(Classifier):
    def __init__(self):
        super().__init__(mlp(), size=76)  # ten batches, the last of four

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(self.global_step)  # dropout goes by the step, also after a resume


class Watch(Callback):
    def __init__(self):
        self.seen, self.modes, self.inputs = [], [], []

    def on_before_backward(self, trainer, pl_module, loss):
        self.modes.append([module.training for module in (pl_module.net[1], pl_module.net[3], pl_module.net[5])])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append({name: buffer.clone() for name, buffer in pl_module.net[1].named_buffers()})
        self.inputs.append(batch[0])


def test_the_statistics_are_the_mean_of_the_batches_after_the_freeze(make_trainer):
    model, watch = Long(), Watch()
    make_trainer(ScriptedFreeze({13: [0]}), watch, max_epochs=4, limit_val_batches=0).fit(model)
    assert watch.modes == [[True] * 3] * 17 + [[False, True, True]] * 23
    outputs = [model.net[0](x) for x in watch.inputs[13:17]]
    mean = torch.stack([out.mean(0) for out in outputs]).mean(0)
    variance = torch.stack([out.var(0) for out in outputs]).mean(0)
    for seen in watch.seen[16:]:
        assert torch.allclose(seen["running_mean"], mean, atol=1e-6)
        assert torch.allclose(seen["running_var"], variance, atol=1e-6)
    assert model.net[1].momentum == 0.1 and not model.net[1].training


def test_resumed_while_statistics_are_measured(make_trainer, tmp_path):
    def freezer():
        return ScriptedFreeze({15: [1], 18: [0]}, {30: [0]})

    whole, watch = Long(), Watch()
    saved = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = make_trainer(freezer(), watch, saved, max_epochs=4, enable_checkpointing=True, limit_val_batches=0)
    trainer.fit(whole)
    path = tmp_path / "epoch=1.ckpt"
    state = torch.load(path, weights_only=True)["callbacks"]["ScriptedFreeze"]["recalibrating"]
    assert state == {"net.1": {"left": 2, "momentum": 0.1}}  # the other one is settled
    resumed, again = Long(), Watch()
    make_trainer(freezer(), again, max_epochs=4, limit_val_batches=0).fit(resumed, ckpt_path=path)
    recalibrates, settled, thawed = [True, True, False], [False, True, False], [True, True, False]
    assert again.modes == watch.modes[20:] == [recalibrates] * 2 + [settled] * 8 + [thawed] * 10
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_the_statistics_of_an_instance_norm_stay_as_they_are(make_trainer):
    model, watch = Long(), Watch()
    model.net[0], model.net[1] = nn.Unflatten(1, (1, 12)), nn.InstanceNorm1d(1, affine=True, track_running_stats=True)
    model.net[2] = nn.Sequential(nn.Flatten(), nn.Linear(12, 16))
    make_trainer(ScriptedFreeze({13: [0]}), watch, max_epochs=4, limit_val_batches=0).fit(model)
    assert not model.net[1].training and model.net[1].momentum == 0.1
    torch.testing.assert_close(watch.seen[-1], watch.seen[12], rtol=0, atol=0)


@pytest.mark.parametrize("step", [37, 39, 40])
def test_a_freeze_in_the_last_batches_leaves_the_statistics_that_are_there(make_trainer, step):
    def fit(script):
        model, watch = Long(), Watch()
        make_trainer(ScriptedFreeze(script), watch, max_epochs=4, limit_val_batches=0).fit(model)
        return model, watch

    (model, watch), (_, other) = fit({step: [0]}), fit({})
    assert all(torch.equal(model.net[1].state_dict()[name], watch.seen[step - 1][name]) for name in watch.seen[0])
    assert all(torch.equal(watch.seen[step - 1][name], other.seen[step - 1][name]) for name in watch.seen[0])
    assert model.net[1].momentum == 0.1 and not model.net[1].training and model.net[5].momentum == 0.1


def test_whoever_validates_before_a_batch_was_measured_has_the_statistics_until_then(make_trainer):
    class Validating(Long):
        def on_validation_start(self):
            self.seen.append({name: tensor.clone() for name, tensor in self.state_dict().items()})

    def fit(script):
        model = Validating()
        model.seen = []
        make_trainer(ScriptedFreeze(script), max_epochs=4).fit(model)
        return model

    frozen, plain = fit({20: [0]}), fit({})
    counted = "net.1.num_batches_tracked"
    assert frozen.seen[1].pop(counted) == 0 and plain.seen[1].pop(counted) == 20
    assert all(torch.equal(tensor, frozen.seen[1][name]) for name, tensor in plain.seen[1].items())


def test_what_never_trained_keeps_its_statistics(make_trainer):
    model = Long()
    before = {name: buffer.clone() for name, buffer in model.net[1].named_buffers()}
    make_trainer(StaticFreezeCallback(layers=1), max_epochs=4, limit_val_batches=0).fit(model)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.net[1].named_buffers())


def test_norms_without_statistics_of_batches_stop_at_once(make_trainer):
    class Spectral(Long):
        def __init__(self):
            super().__init__()
            nn.utils.parametrizations.spectral_norm(self.net[4])
            self.net[5] = nn.BatchNorm1d(16, track_running_stats=False)

    model = Spectral()
    make_trainer(ScriptedFreeze({13: [1]}), max_epochs=4, limit_val_batches=0).fit(model)
    assert model.net[5].training and not model.net[4].parametrizations.weight[0].training
