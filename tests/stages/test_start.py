"""The probe: what it moves, what others see of it, and what is left of it."""

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
    notes,
    probing,
    quiet_mlp,
    same,
    trained,
)
from staging import PROBE as STEPS
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.data import DataLoader

from smartfrz_lightning import Freezer

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


def test_what_an_optimizer_begins_with_is_put_back(make_trainer):
    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == STEPS:
                state = trainer.optimizers[0].state
                self.sums = {float((entry["sum"] - 0.1).abs().sum()) for entry in state.values()}

    look, freezer = Look(), probing()
    model = Classifier(trained(mlp()), lambda p: torch.optim.Adagrad(p, 0.05, initial_accumulator_value=0.1))
    make_trainer(look, freezer).fit(model)
    assert look.sums == {0.0} and freezer.frozen == FROZEN  # such a state does not count as training that had begun


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


def test_optimizers_with_closures_are_not_probed(make_trainer):
    freezer = probing()
    make_trainer(freezer, max_epochs=1).fit(Classifier(mlp(norm=False), lambda p: torch.optim.LBFGS(p, lr=0.1)))
    assert "LBFGS" in notes(freezer)
    net = mlp(norm=False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    engine = Freezer(net, optimizer, probing(), batches_per_epoch=8, total_batches=200)

    def closure():
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    for x in torch.rand(8, 4, 12):
        with engine.batch(x):
            optimizer.step(closure)
    engine.end()
    assert "the gradients of its first step were not seen" in "\n".join(engine.timeline.notes) and not engine.run.frozen


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


class Sharpness(torch.optim.Optimizer):
    """Two passes a step, as SAM takes them."""

    def __init__(self, parameters):
        self.inner = torch.optim.SGD(parameters, 0.05)
        super().__init__(self.inner.param_groups, {})
        self.param_groups = self.inner.param_groups

    def step(self, closure):
        loss = closure()
        closure()
        self.inner.step()
        return loss


class Modal(torch.optim.SGD):
    """Steps in training mode only, as schedule-free optimizers do."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.param_groups[0]["train_mode"] = False

    def step(self, closure=None):
        assert self.param_groups[0]["train_mode"]
        return super().step(closure)


class ModalClassifier(Classifier):
    def on_train_epoch_start(self):
        self.trainer.optimizers[0].param_groups[0]["train_mode"] = True


class Grows(nn.Module):
    """Keeps positions of the longest batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("positions", torch.zeros(4), persistent=False)

    def forward(self, x):
        if len(self.positions) < len(x):
            self.positions = torch.arange(float(len(x)))
        return x + 0 * self.positions[: len(x), None]


class Groups(Classifier):
    """Gets another group of parameters within the probe."""

    def training_step(self, batch, batch_idx):
        if self.global_step == 2 and len(self.optimizers().param_groups) == 1:
            self.extra = nn.Parameter(torch.zeros(3))
            self.optimizers().add_param_group({"params": [self.extra]})
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (lambda: Classifier(trained(mlp()), Sharpness), 12),
        (lambda: ModalClassifier(trained(mlp()), lambda p: Modal(p, 0.05)), 12),
        (lambda: Classifier(nn.Sequential(Grows(), *trained(mlp()))), 12),
        (lambda: Groups(trained(mlp())), 13),
    ],
    ids=["two passes a step", "modes", "a buffer that grows", "a group more"],
)
def test_optimizers_and_models_that_change_within_the_probe(make_trainer, model, parameters):
    trainer, model = make_trainer(probing(NOTHING)), model()
    before = {name: tensor.clone() for name, tensor in model.net.named_parameters() if name.endswith("weight")}
    trainer.fit(model)
    assert sum(len(group["params"]) for group in trainer.optimizers[0].param_groups) == parameters
    assert moved(before, {name: model.net.get_parameter(name) for name in before}) == set(before)


def test_an_optimizer_within_another_keeps_nothing_of_the_probe(make_trainer):
    class Look(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step <= STEPS:
                assert not trainer.optimizers[0]._base_optimizer.state

        def on_train_end(self, trainer, pl_module):
            state = trainer.optimizers[0]._base_optimizer.state
            assert pl_module.net[7].weight in state and pl_module.net[0].weight not in state  # which is frozen

    freezer = probing()
    make = lambda p: create_optimizer_v2(list(p), opt="lookahead_adamw", lr=0.01)  # noqa: E731
    make_trainer(freezer, Look()).fit(Classifier(trained(mlp()), make))
    assert freezer.frozen == FROZEN


def test_embeddings_with_sparse_gradients(make_trainer):
    class Factors(Classifier):
        def __init__(self):
            super().__init__(None, lambda parameters: torch.optim.SGD(parameters, 0.1))
            self.users, self.items = (nn.Embedding(20, 4, sparse=True) for _ in range(2))
            self.head = nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            return self.head(self.users(batch[:, 0]) * self.items(batch[:, 1])).square().mean()

        def train_dataloader(self):
            return DataLoader(torch.randint(20, (64, 2), generator=torch.Generator().manual_seed(0)), 8)

    freezer = probing()
    make_trainer(freezer, limit_val_batches=0).fit(Factors())
    assert freezer.timeline.steps == 24
