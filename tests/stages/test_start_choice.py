"""Which prefix is frozen after the probe, and when there is none."""

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, Endless, adapted, mlp
from staging import FROZEN, InOrder, Safe, Watch, moved, notes, probing, quiet_mlp, trained
from torch import nn

from smartfrz_lightning import SmartFreezeCallback
from smartfrz_lightning.stages.start import probe_length


def test_the_length_of_the_probe_is_a_share_of_the_run():
    assert [probe_length(steps) for steps in (99, 100, 200, 100_000, float("inf"))] == [1, 2, 4, 30, 30]


def test_nothing_of_adapters_is_frozen(make_trainer):
    freezer = probing(Safe((1.1, 3.0)))
    make_trainer(freezer).fit(Classifier(adapted(trained(mlp(norm=False)))))
    assert not freezer.frozen and "adapters" in notes(freezer)


def test_a_layer_without_gradient_or_of_zeros_tells_nothing():
    from smartfrz_lightning.predictor.start import INPUTS, start_inputs

    def columns(silent, zero):
        generator = torch.Generator().manual_seed(0)
        gradients, weights = torch.randn(3, 4, 8, generator=generator), torch.randn(4, 8, generator=generator)
        gradients[:, 1] *= 1 - silent
        weights[1] *= 1 - zero
        inputs = start_inputs(gradients, weights, torch.ones(5))
        return inputs[:, INPUTS.index("front_to_all")]

    plain = columns(0, 0)
    for told in (columns(1, 0), columns(0, 1), columns(1, 1)):
        assert (told - plain).abs().max() < 1  # in logarithms; the norm of a zero is at -20


def test_new_layers_behind_pretrained_ones_train(make_trainer):
    net = mlp()
    trained(net[:7])
    freezer = probing(Safe((1.1, 3.0)))
    make_trainer(freezer).fit(Classifier(net))
    assert freezer.frozen == FROZEN


def test_excluded_and_frozen_layers_are_left_alone(make_trainer):
    net = trained(nn.Sequential(*mlp(), nn.Linear(3, 3), nn.Linear(3, 3)))
    net[0].requires_grad_(False)
    freezer = probing(Safe((1.1, 3.0)), exclude="net.4")
    make_trainer(freezer).fit(Classifier(net))
    assert freezer.frozen == [] or "net.4" not in freezer.frozen
    assert not net[0].weight.requires_grad and net[4].weight.requires_grad


def test_a_run_that_ends_within_the_probe_says_so(make_trainer):
    freezer = SmartFreezeCallback()
    make_trainer(freezer, max_epochs=2, limit_val_batches=0).fit(Endless(trained(mlp())))
    assert "training ended after 16 steps, within the probe" in notes(freezer) and not freezer.frozen


def test_training_that_had_begun_before_is_not_probed(make_trainer, tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1)
    make_trainer(every, enable_checkpointing=True).fit(InOrder(quiet_mlp()))
    freezer, watch = probing(), Watch()
    make_trainer(freezer, watch).fit(InOrder(quiet_mlp()), ckpt_path=str(tmp_path / "step=8.ckpt"))
    assert "training had begun before" in notes(freezer) and not freezer.frozen
    assert "0.weight" in moved(watch.states[0], watch.states[1])
