"""Freezing beside what else people use with a Trainer: what is frozen stays bitwise frozen, what trains goes on."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from models import Classifier, Manual, Tuned, Vectors, adapted, mlp, scheduled
from scripted import ScriptedFreeze
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from smartfrz_lightning import StaticFreezeCallback

FREEZE = {6: [0], 12: [1]}  # of eight steps an epoch


class Watch(Callback):
    """Parameters and statistics of every layer when they stopped, checked after every later batch."""

    def __init__(self, freezer):
        self.freezer, self.known = freezer, {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        state, frozen = pl_module.state_dict(), self.freezer._freezer.run.frozen_layers
        self.known = {name: known for name, known in self.known.items() if name in {layer.name for layer in frozen}}
        for layer in frozen:
            settled = [name for name in layer.stateful if not pl_module.get_submodule(name).training]
            names = [n for n in state if n in layer.parameters or n.rpartition(".")[0] in settled]
            known = self.known.setdefault(layer.name, {})
            known.update({name: state[name].clone() for name in names if name not in known})
            for name, before in known.items():
                assert torch.equal(state[name], before), name


def check(make_trainer, model, *callbacks, frozen=("net.0", "net.4"), **kwargs):
    freezer = ScriptedFreeze(FREEZE)
    watch = Watch(freezer)
    start = copy.deepcopy(model.state_dict())
    trainer = make_trainer(freezer, watch, *callbacks, **{"max_epochs": 4, **kwargs})
    trainer.fit(model)
    assert tuple(freezer.frozen) == frozen == tuple(watch.known)
    end = model.state_dict()
    assert not torch.equal(start["net.9.weight"], end["net.9.weight"]), "the head did not train"
    return trainer, freezer


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision(make_trainer, precision):
    model = Classifier(mlp())
    if precision == "bf16-true":
        model.train_dataloader = lambda: DataLoader([(x.bfloat16(), y) for x, y in Vectors()], 8)
    check(make_trainer, model, precision=precision, limit_val_batches=0)


def test_grad_scaler(make_trainer):
    """16-mixed as on a GPU, with overflows: Lightning gives no GradScaler to the CPU by itself."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=3)
    model, losses = Classifier(mlp()), []

    class Losses(Callback):
        def on_after_backward(self, trainer, pl_module):
            freezer = trainer.callbacks[0]
            losses.append(float(freezer._freezer.run.loss))

    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    _, freezer = check(make_trainer, model, Losses(), plugins=plugin, max_epochs=8)
    assert scaler.get_scale() < 2.0**40, "no step overflowed"
    assert losses == pytest.approx(model.losses), "the loss that methods see is scaled"
    assert len(model.losses) == 64 and freezer.timeline.steps == 64


@pytest.mark.parametrize(
    "scheduler",
    [
        scheduled(lambda o: torch.optim.lr_scheduler.StepLR(o, 1)),
        scheduled(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 32), interval="step"),
        scheduled(torch.optim.lr_scheduler.ReduceLROnPlateau),
    ],
    ids=["epoch", "step", "plateau"],
)
def test_schedulers(make_trainer, scheduler):
    check(make_trainer, Classifier(mlp(), scheduler))


def test_manual_optimization(make_trainer):
    _, freezer = check(make_trainer, Manual(mlp(), every=2), max_epochs=8)
    assert freezer.timeline.steps == 32 and freezer.timeline.saved > 0


class Gan(Classifier):
    """Two networks, two optimizers, one step each a batch."""

    def __init__(self):
        super().__init__(mlp())
        torch.manual_seed(1)
        self.critic = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer, sign in ((first, 1), (second, -1)):
            self.toggle_optimizer(optimizer)
            loss = sign * self.critic(self.net(batch[0])).sigmoid().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 1e-2), torch.optim.Adam(self.critic.parameters(), 1e-2)


def test_two_optimizers_that_are_toggled(make_trainer):
    _, freezer = check(make_trainer, Gan(), limit_val_batches=0)
    assert [layer.name for layer in freezer.layers if layer.name.startswith("critic")] == [
        "critic.0",
        "critic.2",
        "critic.4",
    ]


def test_stochastic_weight_averaging_measures_all_statistics_anew(make_trainer):
    model = Classifier(mlp())
    averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)

    class Until(Watch):
        def on_train_batch_end(self, trainer, *rest):
            if not trainer.fit_loop._skip_backward:
                super().on_train_batch_end(trainer, *rest)

    freezer = ScriptedFreeze(FREEZE)
    make_trainer(freezer, Until(freezer), averaging, max_epochs=4).fit(model)
    assert freezer.frozen == ["net.0", "net.4"] and freezer.timeline.steps == 32
    means = [model.net[0](x).mean(0) for x, _ in DataLoader(Vectors(), 8)]  # each batch counts alike
    assert torch.allclose(model.net[1].running_mean, torch.stack(means).mean(0), atol=1e-3)


def test_averages_of_what_is_frozen_from_the_start_are_what_it_was(make_trainer):
    model = Classifier(mlp())
    before = {name: tensor.clone() for name, tensor in model.net[0].state_dict().items()}
    freezer, average = StaticFreezeCallback(layers=2), EMAWeightAveraging(decay=0.99)  # moves before the freezer's hook
    make_trainer(average, freezer, limit_val_batches=0).fit(model)
    assert freezer.frozen == ["net.0", "net.4"]
    assert all(torch.allclose(tensor, before[name], atol=1e-6) for name, tensor in model.net[0].state_dict().items())


def test_what_is_frozen_from_the_start_stays_within_a_checkpoint_wrapper(make_trainer):
    net = mlp()
    net[0], net[4] = checkpoint_wrapper(net[0]), checkpoint_wrapper(net[4])
    net[1].register_buffer("mask", torch.ones(1).expand(12), persistent=False)
    before, freezer = copy.deepcopy(net), StaticFreezeCallback(layers=2)
    make_trainer(freezer, limit_val_batches=0).fit(Classifier(net, lambda p: torch.optim.AdamW(p, 0.01)))
    assert len(freezer.frozen) == 2 and all(map(torch.equal, net[0].parameters(), before[0].parameters()))
    assert not torch.equal(net[7].weight, before[7].weight)


def test_early_stopping_and_best_checkpoints(make_trainer, tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss", save_top_k=2)
    stop = EarlyStopping("val_loss", patience=1, min_delta=10.0)
    trainer, _ = check(make_trainer, Classifier(mlp()), best, stop, enable_checkpointing=True, max_epochs=9)
    assert trainer.current_epoch == 2 and len(best.best_k_models) == 2


def test_backbone_finetuning(make_trainer):
    """What another callback thaws later trains on; it was frozen when the layers were found, and is left alone."""

    class WithBackbone(Classifier):
        def __init__(self):
            super().__init__(mlp())
            self.backbone = nn.Sequential(nn.Linear(12, 12), nn.ReLU())

        def forward(self, x):
            return self.net(self.backbone(x))

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)

    model = WithBackbone()
    before = model.backbone[0].weight.clone()
    _, freezer = check(make_trainer, model, BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False))
    assert not torch.equal(before, model.backbone[0].weight)
    assert "backbone.0" not in [layer.name for layer in freezer.layers]


def test_finders(make_trainer):
    finders = BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=2), LearningRateFinder(num_training_steps=10)
    check(make_trainer, Tuned(mlp(), batch_size=2), *finders)


def test_layers_like_lora(make_trainer):
    """Most weights are frozen by the user; only small ones beside them train."""

    net = adapted(mlp(norm=False))
    base = net[0].base.weight.clone()
    check(make_trainer, Classifier(net), frozen=("net.0.down", "net.0.up"))
    assert torch.equal(base, net[0].base.weight)


def test_activation_checkpointing_gives_the_same_gradients(make_trainer):
    class Blocks(nn.Sequential):
        def forward(self, x):
            for number, module in enumerate(self):
                recompute = number in (0, 3, 4, 7)
                x = checkpoint(module, x, use_reentrant=False) if recompute and self.training else module(x)
            return x

    plain, blocks = mlp(norm=False), Blocks(*mlp(norm=False))
    for net in (plain, blocks):
        torch.manual_seed(1)
        check(make_trainer, Classifier(net))
    for one, other in zip(plain.parameters(), blocks.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("before", [True, False])
def test_a_users_own_train_call(make_trainer, before):
    class Eager(Classifier):
        def training_step(self, batch, batch_idx):
            if before:
                self.train()
            loss = super().training_step(batch, batch_idx)
            self.train()
            return loss

    class Settled(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen[trainer.global_step] = pl_module.net[1].running_mean.clone()

    seen = {}
    check(make_trainer, Eager(mlp()), Settled())
    assert torch.equal(seen[8], seen[32])


def test_a_scripted_part_always_trains(make_trainer):
    net = mlp(norm=False)
    model = Classifier(nn.Sequential(torch.jit.script(net[:3]), *net[4:]))
    freezer = ScriptedFreeze({6: [1]})
    make_trainer(freezer, limit_val_batches=0).fit(model)
    assert freezer.frozen == ["net.1"]
