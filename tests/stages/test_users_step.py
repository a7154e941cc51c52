"""The second pass of a trial goes through the user's own training step, and touches nothing else."""

import copy
import gc
import pickle
import random
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from models import mlp
from staging import ANYWAY, EPOCHS, NEVER, ByHand, InOrder, fitted, notes, quiet_mlp, same, smart, trained

from smartfrz_lightning.stages import VerifyStage


class SetsWeight(Callback):
    """Sets the weight of the loss before every step, and changes batches and gradients."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.scale = 1.0 / (1 + trainer.global_step)
        batch[0].add_(1.0)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)


class Scaled(InOrder):
    def training_step(self, batch, batch_idx):
        return self.scale * super().training_step(batch, batch_idx)


class Counted(InOrder):
    """Has a counter, a generator of numpy's, and a buffer that moves after every third step."""

    def __init__(self, net):
        super().__init__(net)
        self.calls, self.generator = 0, np.random.default_rng(0)
        self.register_buffer("factor", torch.ones(()))

    def training_step(self, batch, batch_idx):
        self.calls += 1
        return self.factor.clone() / self.calls * self.generator.random() * super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step % 3 == 0:
            self.factor += 0.1


class Shared(InOrder):
    """A hook and closures have the same dict, list, set, queue and generators as the module."""

    def __init__(self, net):
        super().__init__(net)
        self.noted = features, calls, kinds, queue = {}, [], set(), deque(maxlen=3)
        self.generators = generators = torch.Generator().manual_seed(0), random.Random(0), np.random.RandomState(0)

        def note(module, args, out):
            features["mean"] = out.detach().mean()
            calls.append(len(calls))
            kinds.add(len(calls) // 3)
            queue.append(len(calls))

        def weight():
            drawn = torch.rand(1, generator=generators[0])[0] + generators[1].random() + generators[2].rand()
            return 1 + drawn + features["mean"] + 1 / len(calls) + 1 / len(kinds) + 1 / sum(queue)

        net[4].register_forward_hook(note)
        self.weight = weight

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.weight()


@pytest.mark.parametrize(("kind", "callbacks"), [(Scaled, (SetsWeight,)), (Counted, ()), (Shared, ())])
def test_the_trial_sees_what_hooks_and_other_callbacks_change(make_trainer, kind, callbacks):
    def fit(freezer):
        return fitted(make_trainer, lambda: kind(quiet_mlp()), freezer, *[make() for make in callbacks])[0]

    assert same(fit(smart(verdict=NEVER)), fit(ByHand()))


class Target(InOrder):
    """A frozen copy of the network that moves for the first time in the middle of a trial."""

    def __init__(self, net):
        super().__init__(net)
        self.target = copy.deepcopy(net).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        if self.global_step == 18:
            self.target.load_state_dict(self.net.state_dict())
        return super().training_step(batch, batch_idx) + (self(batch[0]) - self.target(batch[0])).square().mean()


def test_a_copy_that_moves_in_a_trial_is_not_that_of_the_shadow_weights(make_trainer):
    def fit(verify):
        return fitted(make_trainer, lambda: Target(quiet_mlp()), smart(verify=verify, verdict=ANYWAY))[0]

    assert same(fit(True), fit(False))


def test_gradient_masks_act_on_the_shadow_weights(make_trainer):
    model = InOrder(optimizer=lambda p: torch.optim.SGD(p, 0.05, momentum=0.9))
    model.net[7].weight.register_hook(lambda grad: grad * torch.zeros(16, 16))
    before = model.net[7].weight.clone()
    freezer = smart(verdict=NEVER)
    make_trainer(freezer, max_epochs=EPOCHS).fit(model)
    assert not freezer.frozen and torch.equal(model.net[7].weight, before)


def test_nothing_outside_of_the_second_pass_is_touched(make_trainer, tmp_path):
    logged = []

    class Logger(CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.append((step, *metrics))

    class Reaching(InOrder):
        def __init__(self):
            super().__init__()
            self.net.note = self.log  # a submodule that logs
            self.generator = torch.Generator().manual_seed(0)
            self.state = {"drawn": []}

        def training_step(self, batch, batch_idx):
            self.state["drawn"].append(float(torch.rand(1, generator=self.generator)))
            loss = super().training_step(batch, batch_idx)
            self.net.note("inner", loss, on_epoch=True, on_step=False)
            self.logger.log_metrics({"own": 1.0}, self.global_step)
            self.trainer.should_stop = self.trainer.should_stop or self.net[0].weight.requires_grad
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler.step()
            self.lr_schedulers().step()
            return loss

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)]

    def fit(verify):
        del logged[:]
        torch.manual_seed(3)
        model = Reaching()
        model.net[0].requires_grad_(True)
        freezer = smart(verify=verify, verdict=ANYWAY, probe=2)

        class Lets(Callback):  # only once the prefix is frozen
            def on_train_batch_end(self, trainer, *_):
                trainer.should_stop = False

        trainer = make_trainer(Lets(), freezer, max_epochs=EPOCHS, logger=Logger(tmp_path))
        trainer.fit(model)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        return model, trainer.global_step, rate, trainer.callback_metrics["inner"], list(logged)

    one, steps, rate, inner, wrote = fit(True)
    other, *rest = fit(False)
    assert (steps, rate, inner) == tuple(rest[:3]) and [w for w in wrote if "own" in w] == [
        w for w in rest[3] if "own" in w
    ]
    assert one.state == other.state and same(one, other)


@dataclass(frozen=True)
class Pair:
    x: torch.Tensor
    y: torch.Tensor


class Named(Mapping):
    """A mapping whose constructor wants something else."""

    def __init__(self, x, y):
        self.inner = {"x": x, "y": y}

    def __getitem__(self, name):
        return self.inner[name]

    def __iter__(self):
        return iter(self.inner)

    def __len__(self):
        return 2


@pytest.mark.parametrize("kind", [Pair, Named])
def test_batches_of_the_users_own_kind_and_steps_that_write_into_them(make_trainer, kind):
    class Own(InOrder):
        def transfer_batch_to_device(self, batch, device, index):
            return batch

        def on_before_batch_transfer(self, batch, index):
            return batch if isinstance(batch, Pair | Named) or not self.trainer.training else kind(*batch)

        def training_step(self, batch, batch_idx):
            x, y = (batch.x, batch.y) if kind is Pair else (batch["x"], batch["y"])
            x.sub_(1).mul_(2)
            return super().training_step((x, y), batch_idx)

    freezer = smart(verdict=ANYWAY)
    model = Own(trained(mlp(norm=False)), lambda p: torch.optim.SGD(p, lr=0.0))
    make_trainer(freezer, max_epochs=EPOCHS, limit_val_batches=0).fit(model)
    assert "the loss was 0 ±" in notes(freezer)


class Lookahead(torch.optim.Optimizer):
    """Holds another optimizer, and numbers of its own."""

    def __init__(self, parameters):
        self.inner = torch.optim.SGD(parameters, 0.05, momentum=0.9)
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self.param_groups, self.every, self.count = self.inner.param_groups, 5, 0

    def step(self, closure=None):
        loss = self.inner.step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for group in self.param_groups:
                for parameter in group["params"]:
                    slow = self.state[parameter].setdefault("slow", parameter.detach().clone())
                    parameter.data.copy_(slow.lerp_(parameter.detach(), 0.5))
        return loss


def test_optimizers_with_attributes_of_their_own(make_trainer):
    freezer = smart(verdict=NEVER)
    make_trainer(freezer, max_epochs=EPOCHS).fit(InOrder(optimizer=Lookahead))
    assert "Trial" in notes(freezer) and not freezer.frozen


def test_memory_is_given_back_and_checkpoints_are_no_larger(make_trainer, tmp_path):
    alive = weakref.WeakSet()

    class Kept(VerifyStage):
        def _open(self, *arguments):
            super()._open(*arguments)
            alive.add(self._trial.shadow)

    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    freezer, model = smart(verify=Kept(**ANYWAY)), InOrder()
    alive_at = {}

    class Count(Callback):
        def on_train_batch_end(self, trainer, *_):
            alive_at[trainer.global_step] = len(alive)

    gc.collect()
    gc.disable()
    try:
        trainer = make_trainer(freezer, Count(), every, max_epochs=EPOCHS, enable_checkpointing=True)
        trainer.fit(model)
    finally:
        gc.enable()
    assert alive_at[20] == 1 and alive_at[24] == 0  # at once, not when cycles are found
    assert "training_step" not in {**vars(model), **vars(trainer.strategy)}
    size = {step: (tmp_path / f"step={step}.ckpt").stat().st_size for step in (11, 20)}
    assert size[20] == pytest.approx(size[11], rel=0.05)


def test_a_model_that_is_copied_in_a_trial_is_one_of_its_own(make_trainer):
    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 18:
                self.copy, self.bytes = copy.deepcopy(pl_module), pickle.dumps(pl_module.net)

    copies, model = Copies(), InOrder(quiet_mlp())
    make_trainer(smart(verdict=ANYWAY), copies, max_epochs=EPOCHS, limit_val_batches=0).fit(model)
    for parameter in copies.copy.parameters():
        parameter.data.zero_()
    batch = next(iter(model.train_dataloader()))
    copied, own = (module.training_step(batch, 0).item() for module in (copies.copy, model))
    assert copied == pytest.approx(np.log(3)) != own


def test_a_training_step_without_a_number_that_asks_for_its_optimizer(make_trainer):
    class Plain(InOrder):
        def training_step(self, batch):
            rate = self.optimizers(False).param_groups[0]["lr"]
            return rate * super().training_step(batch, 0)

    doubled = LambdaCallback(on_before_optimizer_step=lambda trainer, module, _: module.net[9].weight.grad.mul_(2))

    def fit(freezer):
        return fitted(make_trainer, lambda: Plain(quiet_mlp()), freezer, doubled)[0]

    assert same(fit(smart(verdict=NEVER)), fit(ByHand()))
