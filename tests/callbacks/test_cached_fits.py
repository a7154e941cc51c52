"""Fits with the front cache: the same training, less computed, and nothing left behind."""

import copy
import time

import pytest
import torch
import torchvision
from cached import Convolutions
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from models import Classifier, Vectors, mlp
from scripted import ScriptedFreeze
from staging import Batches
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from smartfrz_lightning import IntervalFreezeCallback, StaticFreezeCallback
from smartfrz_lightning.report.show import cache_line


class Slow(nn.Linear):
    """Takes as long as a layer of a real network: a cache that saves no time switches itself off."""

    def forward(self, x):
        time.sleep(0.005)
        return super().forward(x)


class Shuffled(Classifier):
    """Other batches in every epoch, drawn by the epoch."""

    size = 120

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(self.current_epoch)
        return DataLoader(Vectors(self.size), 6, shuffle=True, generator=generator)


class Manual(Shuffled):
    """Two optimizers, accumulation of one's own, clipping, under manual optimization."""

    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[:5].parameters(), 0.05), torch.optim.Adam(self.net[5:].parameters(), 0.01)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss / 2)
        if batch_idx % 2:
            for optimizer in self.optimizers():
                self.clip_gradients(optimizer, 0.5, "norm")
                optimizer.step()
                optimizer.zero_grad()


class Flipped(Shuffled):
    """Each sample comes in two views, at random."""

    def train_dataloader(self):
        class Views(Dataset):
            data = Vectors(120)

            def __len__(self):
                return 120

            def __getitem__(self, index):
                x, y = self.data[index]
                return (x.flip(0) if torch.rand(()) < 0.5 else x), y

        return DataLoader(Views(), 6, shuffle=True)


METHODS = {
    "static": lambda cache: StaticFreezeCallback(layers=0.5, cache_front=cache),
    "interval": lambda cache: IntervalFreezeCallback(flops_reduction=0.3, cache_front=cache),
    "thaws": lambda cache: ScriptedFreeze({3: [0, 1], 25: [0]}, {18: [0, 1]}, cache_front=cache),
}


EPOCHS = {"static": {}, "interval": {"max_epochs": 9}, "thaws": {}}  # samples come again before the front grows


def quiet():
    net = mlp()
    for number in (0, 4):
        slow = Slow(net[number].in_features, net[number].out_features)
        slow.load_state_dict(net[number].state_dict())
        net[number] = slow
    for module in net:
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the cache switches it off in the front, which another test is about
    return net


def both(make_trainer, kind, make, *callbacks, **trainer):
    """The same fit without and with the cache."""
    fits = []
    for cache in (False, True):
        torch.manual_seed(5)
        model, freezer = kind(quiet()), make(cache)
        make_trainer(freezer, *copy.deepcopy(callbacks), **{"max_epochs": 5, **trainer}).fit(model)
        fits.append((model, freezer))
    return fits


TRAINERS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "double": {"precision": "64-true"},
    "bf16": {"precision": "bf16-mixed"},
    "often validated": {"val_check_interval": 3},
    "anomaly": {"detect_anomaly": True},
}


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("method", METHODS)
def test_the_same_training_and_less_of_it(make_trainer, method, trainer):
    (plain, without), (cached, freezer) = both(
        make_trainer, Shuffled, METHODS[method], **EPOCHS[method], **TRAINERS[trainer]
    )
    near = 2e-2 if trainer == "bf16" else 1e-9 if trainer == "double" else 1e-4
    assert cached.losses == pytest.approx(plain.losses, rel=near, abs=near)
    use = freezer.timeline.cache
    assert without.timeline.cache is None
    assert use.hits > 0
    assert use.stopped == "training ended" or "ms without" in use.stopped  # how long a step takes is the machine's
    assert freezer.timeline.spent.forward < without.timeline.spent.forward
    assert freezer.timeline.spent.weight_gradient == without.timeline.spent.weight_gradient
    # What was not done is the forward pass of the frozen front, for the samples that were known.
    done = without.timeline.spent.forward - freezer.timeline.spent.forward
    front = sum(cost.forward for cost in freezer.timeline.cost.layers[:2]) / 6
    assert 0 < done <= (use.hits + use.misses) * front * 1.001


def test_under_manual_optimization_with_two_optimizers(make_trainer):
    (plain, _), (cached, freezer) = both(make_trainer, Manual, METHODS["static"])
    assert cached.losses == pytest.approx(plain.losses, rel=1e-4) and freezer.timeline.cache.hits > 0


def test_with_averaged_weights(make_trainer):
    average = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=2)
    (plain, _), (cached, freezer) = both(make_trainer, Shuffled, METHODS["static"], average)
    assert cached.losses == pytest.approx(plain.losses, rel=1e-4) and freezer.timeline.cache.hits > 0


def test_two_views_of_a_sample_are_two_entries(make_trainer):
    (plain, _), (cached, freezer) = both(make_trainer, Flipped, METHODS["static"], max_epochs=9)
    assert cached.losses == pytest.approx(plain.losses, rel=1e-4, abs=1e-5)
    assert 120 < freezer.timeline.cache.misses < 9 * 120 and freezer.timeline.cache.hits == 0


def test_of_a_single_epoch_nothing_is_kept(make_trainer):
    with pytest.warns(UserWarning, match="switched off: in a run of a single epoch no sample comes again"):
        _, (_, freezer) = both(make_trainer, Shuffled, METHODS["thaws"], max_epochs=1)
    assert freezer.timeline.cache.hits == freezer.timeline.cache.misses == 0


class Breaks(Callback):
    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_before_zero_grad(self, trainer, *_):
        if trainer.global_step == self.step:
            raise self.error


def forward_is_its_own(model):
    return not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_nothing_is_left_behind(make_trainer, tmp_path, error):
    model, freezer = Shuffled(quiet()), StaticFreezeCallback(layers=0.5, cache_front=str(tmp_path / "kept"))
    trainer = make_trainer(freezer, Breaks(20, error), max_epochs=4)
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        trainer.fit(model)
    assert forward_is_its_own(model) and freezer._freezer is None
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} == {".safetensors"}
    copy.deepcopy(model)  # no placeholder, no lambda
    torch.save(model.state_dict(), tmp_path / "model.pt")


def test_resumed_in_the_middle_of_an_epoch_it_is_filled_again_or_found(make_trainer, tmp_path):
    class InOrder(Classifier):
        def train_dataloader(self):
            return Batches(self)

    def fit(*callbacks, folder=True, **kwargs):
        torch.manual_seed(5)
        model, freezer = InOrder(quiet()), ScriptedFreeze({3: [0, 1]}, cache_front=folder)
        path = kwargs.pop("ckpt_path", None)
        make_trainer(freezer, *callbacks, max_epochs=4, enable_checkpointing=True, **kwargs).fit(model, ckpt_path=path)
        return model, freezer

    whole, _ = fit(ModelCheckpoint(tmp_path / "whole"))
    saved = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=13, save_top_k=-1, filename="{step}")
    fit(saved, folder=str(tmp_path / "kept"))
    misses = []
    for folder in (True, str(tmp_path / "kept")):
        again, freezer = fit(ckpt_path=str(tmp_path / "saved" / "step=13.ckpt"), folder=folder)
        assert again.losses == pytest.approx(whole.losses[13:], rel=1e-4)
        misses.append(freezer.timeline.cache.misses)
    assert misses[0] == 61 and misses[1] < misses[0]


def test_what_does_not_pay_is_switched_off_and_said(make_trainer):
    class Noisy(Shuffled):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0] + torch.rand_like(batch[0]), batch[1]), batch_idx)

    freezer = StaticFreezeCallback(layers=0.5, cache_front=True)
    with pytest.warns(UserWarning, match="switched off: it knew 0% of the samples and 0% of the batches: random"):
        make_trainer(freezer, max_epochs=6).fit(Noisy(quiet()))
    assert "switched off: it knew 0%" in cache_line(freezer.timeline.cache)
    assert freezer.timeline.cache.hits == 0


def test_sizes_of_the_cache_are_checked():
    with pytest.raises(ValueError, match="cache_gigabytes=0: must be above 0"):
        StaticFreezeCallback(cache_gigabytes=0)
    with pytest.raises(ValueError, match="cache_dtype='int8'"):
        StaticFreezeCallback(cache_dtype="int8")


def test_a_compiled_model_is_left_alone_and_it_is_said(make_trainer):
    net = quiet()
    net[4].compile(backend="eager")
    freezer = StaticFreezeCallback(layers=0.3, cache_front=True)
    with pytest.warns(UserWarning, match="switched off: the model is compiled"):
        make_trainer(freezer).fit(Shuffled(net))


def test_a_layer_that_is_tied_to_one_behind_is_not_booked_as_skipped(make_trainer):
    front = [Slow(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh()]
    net = nn.Sequential(*front, Slow(12, 12), nn.Tanh(), nn.Linear(12, 3))
    net[4].weight, net[4].bias = net[0].weight, net[0].bias
    model, freezer = Shuffled(net), ScriptedFreeze({1: [0]}, cache_front=True)
    make_trainer(freezer, max_epochs=5).fit(model)
    assert freezer.frozen == ["net.0"] and freezer.timeline.cache.hits > 0
    assert sum(state.skipped for state in freezer.timeline.states) == 0


class CountConvolutions(Callback):
    """Convolutions that are computed forward in each training batch."""

    def __init__(self):
        self.counts, self.mode = [], None

    def on_train_batch_start(self, *_):
        self.mode = Convolutions()
        self.mode.__enter__()

    def on_train_batch_end(self, *_):
        self.mode.__exit__(None, None, None)
        self.counts.append(self.mode.count)


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_known_images_pass_through_the_back_of_a_convolutional_network_alone(make_trainer, name, by_hand):
    class Images(Classifier):
        def train_dataloader(self):
            x = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            return DataLoader(TensorDataset(x, torch.arange(12) % 3), 4)

    torch.manual_seed(0)
    model = Images(getattr(torchvision.models, name)(num_classes=3))
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    stem.requires_grad_(not by_hand)  # the user froze it, and the method the rest
    freezer, count = StaticFreezeCallback(layers=0.5, cache_front=True), CountConvolutions()
    make_trainer(freezer, count, max_epochs=7, limit_val_batches=0).fit(model)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    behind = sum(module.weight.requires_grad for module in convolutions)
    assert behind < 0.6 * len(convolutions)
    assert count.counts[-1] == behind, (count.counts, freezer.timeline.cache)
    assert freezer.timeline.cache.hits >= 24
