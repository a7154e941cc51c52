"""The probe with optimizers and models of many kinds."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from models import Classifier, mlp, scheduled
from staging import FROZEN, NOTHING, moved, notes, probing, trained
from staging import PROBE as STEPS
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.data import DataLoader

from smartfrz_lightning import Freezer


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


class Masks(nn.Module):
    """Has buffers that cannot be written to: an expanded one, one from inference mode, one that comes and goes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ones", torch.ones(1).expand(12))
        self.register_buffer("nothing", torch.full((1,), torch.nan).expand(12))
        with torch.inference_mode():
            self.register_buffer("mask", torch.ones(12))
        self.register_buffer("cache", torch.ones(12))

    def forward(self, x):
        self.cache = None if self.cache is not None else torch.ones(12)
        return x * self.ones * self.mask.clone()


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
        (lambda: Classifier(nn.Sequential(Masks(), *trained(mlp()))), 12),
        (lambda: Groups(trained(mlp())), 13),
    ],
    ids=["two passes a step", "modes", "a buffer that grows", "odd buffers", "a group more"],
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


def test_a_counter_that_a_step_puts_into_a_group_is_put_back(make_trainer):
    class Look(Callback):
        def on_train_batch_end(self, trainer, *_):
            count = trainer.optimizers[0].param_groups[0].get("step", 0)
            assert count == max(0, trainer.global_step - STEPS)

    make = lambda p: create_optimizer_v2(list(p), opt="lamb", lr=0.01)  # noqa: E731
    make_trainer(Look(), probing(NOTHING)).fit(Classifier(trained(mlp()), make))


def test_schedules_of_a_run_whose_first_steps_overflow(make_trainer):
    def rates(*freezer):
        class Look(Callback):
            def on_train_batch_start(self, trainer, *_):
                seen.append(trainer.optimizers[0].param_groups[0]["lr"])

        seen, scaler = [], torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=1000)
        cosine = scheduled(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24), interval="step")
        make_trainer(Look(), *freezer, plugins=MixedPrecision("16-mixed", "cpu", scaler)).fit(
            Classifier(trained(mlp()), cosine)
        )
        return seen, scaler.get_scale()

    plain, scale = rates()
    assert scale < 2.0**18 and rates(probing(NOTHING))[0] == plain


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
