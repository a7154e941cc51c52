"""Runs that are not probed, or whose probe does not end."""

import pytest
import torch
from conftest import Classifier, Vectors, mlp
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from test_probe import InOrder, Watch, moved, probing
from torch.utils.data import DataLoader, IterableDataset

from smartfrz_lightning import Freezer, SmartFreezeCallback
from smartfrz_lightning.engine import TrainingRun
from smartfrz_lightning.engine.probed_start import ProbedStart


def test_a_run_that_ends_within_the_probe_says_so(make_trainer, monkeypatch):
    class Endless(Classifier):
        def train_dataloader(self):
            return DataLoader(Stream(), 8)

    freezer, model = SmartFreezeCallback(), Endless(mlp())
    with pytest.warns(UserWarning, match="training ended after 16 steps, within the probe: only the head has trained"):
        make_trainer(freezer, max_epochs=2, limit_val_batches=0).fit(model)
    assert freezer.timeline.start is None and not freezer.frozen
    head = model.net[9].weight.clone()
    make_trainer(freezer, max_epochs=1, limit_val_batches=0).fit(model)  # goes on as plain training
    assert not torch.equal(head, model.net[9].weight) and freezer.timeline.start is None
    with pytest.raises(ValueError, match="probe_steps=50: the run has only 24 batches"):
        make_trainer(SmartFreezeCallback(probe_steps=50)).fit(Classifier(mlp()))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Vectors())


def test_a_broken_off_probe_is_not_gone_on_with(make_trainer, monkeypatch):
    class Breaks(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("enough")

    freezer, model = probing(monkeypatch, gentle=True), Classifier(mlp())
    with pytest.raises(RuntimeError, match="enough"), pytest.warns(UserWarning, match="within the probe"):
        make_trainer(freezer, Breaks()).fit(model)
    other = mlp(seed=4).state_dict()
    model.net.load_state_dict(other)
    watch = Watch()
    make_trainer(freezer, watch, max_epochs=1).fit(model)
    assert all("9.weight" in moved(state, after) for state, after in zip(watch.states, watch.states[1:], strict=False))
    assert "0.weight" in moved(watch.states[0], watch.states[1])  # all of it trains, from what was loaded


def test_a_run_that_others_began_is_not_probed(make_trainer, monkeypatch, tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1)
    make_trainer(every, enable_checkpointing=True).fit(InOrder(mlp()))
    freezer, model, watch = probing(monkeypatch, gentle=True), InOrder(mlp()), Watch()
    with pytest.warns(UserWarning, match="training had begun before"):
        make_trainer(freezer, watch).fit(model, ckpt_path=str(tmp_path / "step=8.ckpt"))
    assert not freezer.frozen and "0.weight" in moved(watch.states[0], watch.states[1])


def test_sharded_probes_are_not_resumed():
    start = ProbedStart(SmartFreezeCallback()._start_predictor, threshold=0.8)
    with pytest.raises(ValueError, match="from the middle of the probe, of which sharded parameters"):
        start.load_state_dict({"sharded": True}, TrainingRun(mlp()))


def test_a_loop_that_steps_with_closures_is_not_probed(monkeypatch):
    net = mlp(norm=False)
    optimizer, freezer = torch.optim.SGD(net.parameters(), 0.1), probing(monkeypatch, gentle=True)
    engine = Freezer(net, optimizer, freezer, batches_per_epoch=8, total_batches=200)

    def closure():
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match="steps with a closure"):
        for x in torch.rand(8, 4, 12):
            with engine.batch(x):
                optimizer.step(closure)
    engine.end()
    assert not engine.run.frozen and engine.timeline.start is None


def test_lbfgs_is_not_probed_and_it_is_said(make_trainer, monkeypatch):
    freezer = probing(monkeypatch, gentle=True)
    with pytest.warns(UserWarning, match="start='probe': LBFGS"):
        make_trainer(freezer, max_epochs=1).fit(Classifier(mlp(norm=False), lambda p: torch.optim.LBFGS(p, lr=0.1)))
    assert freezer.timeline.start is None
