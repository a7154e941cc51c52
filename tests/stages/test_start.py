"""The probe: what it moves, what others see of it, and what is left of it."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from models import Classifier, Manual, Tuned, mlp, two
from staging import (
    FROZEN,
    NOTHING,
    OPTIMIZERS,
    InOrder,
    Safe,
    Watch,
    moved,
    probing,
    quiet_mlp,
    same,
    trained,
)
from staging import PROBE as STEPS
from torch import nn

TRAINERS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2, "max_epochs": 5},
    "clipping by norm": {"gradient_clip_val": 0.1},
    "clipping by value": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    "bf16": {"precision": "bf16-mixed"},
    "double": {"precision": "64-true"},
}


@pytest.mark.parametrize("predictor", [Safe(), NOTHING], ids=["safe", "unsafe"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_probe_leaves_no_trace(make_trainer, trainer, optimizer, predictor):
    model, watch, freezer = Classifier(trained(mlp()), OPTIMIZERS[optimizer]), Watch(), probing(predictor)
    make_trainer(watch, freezer, watch, **TRAINERS[trainer]).fit(model)
    batches = STEPS * TRAINERS[trainer].get("accumulate_grad_batches", 1)
    states, held = watch.states[::2], watch.optimizers[::2]
    for state, names in zip(states[1 : batches + 1], held[1 : batches + 1], strict=True):
        assert {n for n in moved(states[0], state) if n.endswith(("weight", "bias"))} <= {"9.weight", "9.bias"}
        assert names <= {"9.weight", "9.bias"}
    assert moved(states[0], watch.states[2 * batches + 1]) == set() == watch.optimizers[2 * batches + 1]
    assert freezer.frozen == (FROZEN if predictor is not NOTHING else [])
    assert [event.step for event in freezer.timeline.events] == [STEPS] * len(freezer.frozen)
    still = {name for name in states[0] if name.split(".")[0] in ("0", "1", "4", "5")}
    changed = moved(states[0], watch.states[-1])
    assert "7.weight" in changed and (not changed & still if freezer.frozen else changed > {"0.weight", "4.weight"})


def test_a_run_that_ends_before_its_first_gradient_ends_as_without_a_probe(make_trainer):
    class Stops(Classifier):
        def on_train_start(self):
            self.trainer.should_stop = True

    class Skips(Classifier):
        def training_step(self, batch, batch_idx):
            return None

    class Fails(Classifier):
        def training_step(self, batch, batch_idx):
            return self.net(batch[0][:, :5])

    for kind in (Stops, Skips):
        make_trainer(probing()).fit(kind(trained(mlp())))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make_trainer(probing()).fit(Fails(trained(mlp())))


def test_the_head_learns_in_the_probe(make_trainer):
    model = Classifier(quiet_mlp(norm=False), size=8)  # the same batch each time
    make_trainer(probing(), max_epochs=8).fit(model)
    assert all(later < before for before, later in zip(model.losses[: STEPS - 1], model.losses[1:STEPS], strict=True))
    assert model.losses[STEPS] > model.losses[STEPS - 1]  # the head is as it came


def test_other_callbacks_see_gradients_of_every_parameter_from_the_first_step_on(make_trainer):
    class Norms(Callback):
        norms = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            training = [p for p in pl_module.parameters() if p.requires_grad]
            self.norms.append(torch.stack([p.grad.norm() for p in training]))

    norms = Norms()
    norms.norms = []
    make_trainer(probing(), norms, max_epochs=1).fit(Classifier(trained(mlp(norm=False))))
    assert len(norms.norms) == 8 and (norms.norms[0][:-2] == 0).all() and (norms.norms[0][-2:] > 0).all()


def test_averages_of_the_weights_see_nothing_of_the_probe(make_trainer):
    class Teacher(Classifier):
        """Keeps an average of its weights, and a centre in a buffer."""

        def __init__(self):
            super().__init__(trained(mlp()))
            self.average = nn.Linear(16, 3).requires_grad_(False)
            self.average.load_state_dict(self.net[9].state_dict())
            self.register_buffer("centre", torch.zeros(3))

        def training_step(self, batch, batch_idx):
            self.centre.lerp_(self(batch[0]).detach().mean(0), 0.1)
            self.average.weight.data.lerp_(self.net[9].weight.detach(), 0.5)
            return super().training_step(batch, batch_idx)

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == STEPS:
                self.model = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
                self.average = {n: t.clone() for n, t in average._average_model.module.named_parameters()}

    model, average, look = Teacher(), EMAWeightAveraging(decay=0.5), Look()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freezer = probing()
    make_trainer(average, freezer, look, limit_val_batches=0).fit(model)
    assert freezer.frozen == FROZEN and moved(before, look.model) == set()
    assert all(torch.allclose(tensor, before[name]) for name, tensor in look.average.items())


def test_what_does_not_freeze_trains_as_if_there_had_been_no_probe(make_trainer):
    class Later(InOrder):
        def training_step(self, batch, batch_idx):
            return None if self.trainer.fit_loop.total_batch_idx < STEPS else super().training_step(batch, batch_idx)

    probed, plain = InOrder(quiet_mlp()), Later(quiet_mlp())
    make_trainer(probing(NOTHING)).fit(probed)
    make_trainer().fit(plain)
    assert probed.losses[STEPS:] == plain.losses and same(probed, plain)


def test_a_checkpoint_from_the_probe_holds_the_weights_that_came_and_the_probe_starts_again(make_trainer, tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    before = quiet_mlp().state_dict()
    make_trainer(probing(), every, enable_checkpointing=True).fit(InOrder(quiet_mlp()))
    path = str(tmp_path / "step=3.ckpt")
    saved = torch.load(path, weights_only=True)
    assert {n: t for n, t in saved["state_dict"].items() if not torch.equal(t, before[n.removeprefix("net.")])} == {}
    assert not saved["optimizer_states"][0]["state"]
    resumed = probing()
    make_trainer(resumed).fit(InOrder(quiet_mlp()), ckpt_path=path)
    assert {event.step for event in resumed.timeline.events} == {3 + STEPS} and resumed.frozen == FROZEN


def test_an_epoch_whose_rest_is_skipped_within_the_probe_ends_without_a_trace(make_trainer):
    class Skips(InOrder):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.current_epoch == 0 and batch_idx == 3 else None

        def on_train_epoch_end(self):
            self.ended = getattr(self, "ended", None) or copy.deepcopy(self.net.state_dict())

    model = Skips(quiet_mlp())
    make_trainer(probing(), max_epochs=6).fit(model)
    assert not moved(quiet_mlp().state_dict(), model.ended) and not model.net[0].weight.requires_grad


def test_a_checkpoint_that_is_saved_on_an_exception_resumes_as_any_other(make_trainer, tmp_path):
    class Fails(InOrder):
        def training_step(self, batch, batch_idx):
            if self.global_step == 3:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_idx)

    saves = ModelCheckpoint(tmp_path, save_on_exception=True)
    with pytest.raises(RuntimeError, match="out of luck"):
        make_trainer(probing(), saves, enable_checkpointing=True).fit(Fails(quiet_mlp()))
    [path] = tmp_path.glob("*.ckpt")
    resumed = probing()
    make_trainer(resumed).fit(InOrder(quiet_mlp()), ckpt_path=str(path))
    assert {event.step for event in resumed.timeline.events} == {3 + STEPS} and resumed.frozen == FROZEN
    assert not any("within the probe" in note for note in resumed.timeline.notes)


def test_groups_and_several_optimizers(make_trainer):
    watch, freezer = Watch(), probing(NOTHING)
    make_trainer(freezer, watch).fit(Manual(trained(mlp()), two(8)))
    assert moved(watch.states[0], watch.states[STEPS]) == set() == watch.optimizers[STEPS]

    def split(parameters):
        *body, weight, bias = parameters
        return torch.optim.AdamW([{"params": body, "lr": 0.001}, {"params": [weight, bias]}], 0.01)

    watch, freezer = Watch(), probing()
    make_trainer(freezer, watch).fit(Classifier(trained(mlp()), split))
    assert moved(watch.states[0], watch.states[STEPS]) == set() and freezer.frozen == FROZEN


@pytest.mark.parametrize("fused", [True, False])
def test_under_a_grad_scaler(make_trainer, fused):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)  # halves until it fits
    model = Classifier(trained(mlp(norm=False)), lambda p: torch.optim.SGD(p, 0.01, fused=fused))
    freezer = probing()
    make_trainer(freezer, max_epochs=8, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(model)
    assert freezer.frozen == FROZEN


def test_a_second_fit_is_not_probed_again_and_another_model_is(make_trainer):
    model, freezer = Classifier(trained(mlp())), probing()
    make_trainer(freezer).fit(model)
    events = list(freezer.timeline.events)
    make_trainer(freezer).fit(model)
    assert freezer.timeline.events == events
    watch = Watch()
    make_trainer(freezer, watch).fit(Classifier(trained(mlp(seed=3))))
    assert moved(watch.states[0], watch.states[STEPS]) == set() and freezer.frozen == FROZEN


def test_after_a_learning_rate_finder(make_trainer):
    watch, freezer = Watch(), probing()
    make_trainer(LearningRateFinder(num_training_steps=10), freezer, watch).fit(Tuned(trained(mlp())))
    assert moved(watch.states[0], watch.states[STEPS]) == set() and freezer.frozen == FROZEN


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_before_backward", "on_before_zero_grad"])
def test_a_broken_off_probe_leaves_no_trace_and_is_not_gone_on_with(make_trainer, hook):
    def breaks(trainer, *_):
        if trainer.global_step >= 2:
            raise RuntimeError("enough")

    freezer, model, watch = probing(), Classifier(trained(mlp())), Watch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = make_trainer(freezer, LambdaCallback(**{hook: breaks}))
    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(model)
    assert moved(before, model.state_dict()) == set() and not trainer.optimizers[0].state
    make_trainer(freezer, watch, max_epochs=1).fit(model)
    assert moved(watch.states[0], watch.states[STEPS]) == set()  # the next fit is a run of its own
