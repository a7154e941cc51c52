"""A probe at the start: only the head moves in it, no trace is left, and what it says is held."""

import copy

import pytest
import torch
from conftest import Classifier, Vectors, mlp
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from test_resume import Batches
from torch import nn
from torch.utils.data import DataLoader

from smartfrz_lightning import SmartFreezeCallback
from smartfrz_lightning.callbacks import smart
from smartfrz_lightning.engine import probed_start
from smartfrz_lightning.report.show import timeline_table

STEPS = 5


class Watch(Callback):
    """What everything was like before and after every batch."""

    def __init__(self):
        self.states, self.optimizers = [], []

    def look(self, pl_module):
        self.states.append(copy.deepcopy(pl_module.net.state_dict()))
        held = pl_module.trainer.optimizers
        named = {id(p): name for name, p in pl_module.net.named_parameters()}
        self.optimizers.append({named[id(p)] for optimizer in held for p in optimizer.state})

    def on_train_start(self, trainer, pl_module):
        self.look(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.look(pl_module)


class InOrder(Classifier):
    def train_dataloader(self):
        return Batches(self)


class Sure(nn.Module):
    """Finds the first two thirds of the fronts harmless, or none."""

    def __init__(self, gentle):
        super().__init__()
        self.gentle = gentle

    def forward(self, inputs):
        return torch.where(inputs[:, 0] < 0.7, 3.0, -3.0) if self.gentle else torch.full((len(inputs),), -3.0)


def probing(monkeypatch, gentle, **how):
    """A callback whose predictor is sure of the front, or not; random weights count as trained ones."""
    monkeypatch.setattr(smart.StartPredictor, "load", lambda path: Sure(gentle))
    monkeypatch.setattr(probed_start, "untrained_end", lambda *_: 0)
    return SmartFreezeCallback(probe_steps=STEPS, **how)


def moved(before, after):
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


TRAINERS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2, "max_epochs": 5},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
    "double": {"precision": "64-true"},
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("gentle", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_only_the_head_moves_and_no_trace_is_left(make_trainer, monkeypatch, trainer, optimizer, gentle):
    model, watch, freezer = Classifier(mlp(), OPTIMIZERS[optimizer]), Watch(), probing(monkeypatch, gentle)
    make_trainer(freezer, watch, **TRAINERS[trainer]).fit(model)
    batches = STEPS * TRAINERS[trainer].get("accumulate_grad_batches", 1)
    start = watch.states[0]
    for state, held in zip(watch.states[1:batches], watch.optimizers[1:batches], strict=True):
        weights = {name for name in moved(start, state) if name.rpartition(".")[2] in ("weight", "bias")}
        assert weights <= {"9.weight", "9.bias"} and held <= {"9.weight", "9.bias"}
    assert moved(start, watch.states[batches - 1]) >= {"9.weight", "9.bias", "1.running_mean"}  # the head does learn
    assert moved(start, watch.states[batches]) == set() and watch.optimizers[batches] == set()
    held = ["net.0", "net.4"] if gentle else []
    assert freezer.timeline.start.held == held and freezer.frozen[: len(held)] == held
    assert [event.step for event in freezer.timeline.events[: len(held)]] == [STEPS] * len(held)
    still = {name for name in start if name.split(".")[0] in ("0", "1", "4", "5")}
    changed = moved(start, watch.states[-1])
    assert not changed & still if gentle else changed >= {"0.weight", "4.weight", "7.weight", "9.weight"}
    assert "7.weight" in changed and len(freezer.timeline.start.profile) == 3


def test_what_is_not_held_trains_as_if_there_had_been_no_probe_but_later(make_trainer, monkeypatch):
    class Later(InOrder):
        """Plain training that begins a few steps later."""

        def training_step(self, batch, batch_idx):
            return None if self.trainer.fit_loop.total_batch_idx < STEPS else super().training_step(batch, batch_idx)

    def quiet():
        net = mlp()
        net[3].p = 0.0
        return net

    probed, plain = InOrder(quiet()), Later(quiet())
    make_trainer(probing(monkeypatch, gentle=False)).fit(probed)
    make_trainer().fit(plain)
    assert probed.losses[STEPS:] == plain.losses
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in probed.state_dict().items())


def test_resumed_in_the_middle_of_a_probe(make_trainer, monkeypatch, tmp_path):
    def fit(*callbacks, ckpt_path=None):
        torch.manual_seed(5)
        model, freezer = InOrder(mlp()), probing(monkeypatch, gentle=True)
        model.net[3].p = 0.0
        make_trainer(freezer, *callbacks, enable_checkpointing=True).fit(model, ckpt_path=ckpt_path)
        return model, freezer

    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole, freezer = fit(every)
    for step in (1, 3, STEPS, STEPS + 1):
        again, resumed = fit(ckpt_path=str(tmp_path / f"step={step}.ckpt"))
        assert again.losses == whole.losses[step:], step
        assert resumed.timeline.start.sure == freezer.timeline.start.sure
        assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_under_manual_optimization_with_two_optimizers(make_trainer, monkeypatch):
    class Two(InOrder):
        def __init__(self):
            super().__init__(mlp())
            self.automatic_optimization = False

        def configure_optimizers(self):
            return torch.optim.SGD(self.net[:5].parameters(), 0.1), torch.optim.Adam(self.net[5:].parameters())

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    model, watch, freezer = Two(), Watch(), probing(monkeypatch, gentle=False)
    make_trainer(freezer, watch).fit(model)
    assert moved(watch.states[0], watch.states[STEPS]) == set() and watch.optimizers[STEPS] == set()
    profile = freezer.timeline.start.profile
    assert profile["net.0"] > 0 and profile["net.7"] > 0 and len(profile) == 3  # one of either optimizer


def test_the_length_of_a_probe_is_a_share_of_the_run(make_trainer):
    class Long(Classifier):
        def train_dataloader(self):
            return DataLoader(Vectors(300), 2)  # 150 steps an epoch

    def steps(**trainer):
        freezer = SmartFreezeCallback()
        make_trainer(freezer, limit_val_batches=0, **trainer).fit(Long(mlp()))
        return freezer.timeline.start.steps

    assert steps(max_epochs=2) == 6 and steps(max_epochs=2, accumulate_grad_batches=3) == 2
    assert steps(max_epochs=1, limit_train_batches=80) == 0  # too short
    assert steps(max_steps=2000, max_epochs=-1) == 30


def test_a_second_fit_is_not_probed_again_and_another_model_is(make_trainer, monkeypatch):
    model, freezer = Classifier(mlp()), probing(monkeypatch, gentle=True)
    make_trainer(freezer).fit(model)
    first = freezer.timeline.start
    make_trainer(freezer).fit(model)
    assert freezer.timeline.start == first and freezer.frozen[:2] == ["net.0", "net.4"]
    other = Classifier(mlp(seed=3))
    watch = Watch()
    make_trainer(freezer, watch).fit(other)
    assert freezer.timeline.start != first and moved(watch.states[0], watch.states[STEPS]) == set()


def test_a_front_that_the_user_froze_or_excludes_is_left_alone(make_trainer, monkeypatch):
    net = mlp()
    net[0].requires_grad_(False)
    freezer = probing(monkeypatch, gentle=True, exclude="net.4")
    model = Classifier(nn.Sequential(*net, nn.Linear(3, 3), nn.Linear(3, 3)))
    make_trainer(freezer).fit(model)
    assert set(freezer.timeline.start.profile) == {"net.7", "net.9", "net.10"}
    assert not net[0].weight.requires_grad and net[4].weight.requires_grad


class Lora(nn.Module):
    """A linear layer that the user froze, with a small one beside it that trains."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Tied(nn.Module):
    """Output weights are those of the first layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.middle, self.norm = nn.Linear(12, 3, bias=False), nn.Linear(3, 3), nn.LayerNorm(12)

    def forward(self, x):
        h = torch.tanh(self.middle(self.embed(x)))
        return nn.functional.linear(self.norm(nn.functional.linear(h, self.embed.weight.T)), self.embed.weight)


def lora():
    net = mlp(norm=False)
    for number in (0, 4, 7):
        net[number] = Lora(net[number])
    return net


NETWORKS = {
    # the network, what is held, what may move in the probe (and is put back)
    "no BatchNorm": (lambda: mlp(norm=False), ["net.0", "net.4"], {"9"}),
    "one layer": (lambda: nn.Linear(12, 3), [], set()),
    "LoRA": (lora, ["net.0.down", "net.0.up", "net.4.down", "net.4.up"], {"9"}),
    "tied": (Tied, ["net.middle"], {"embed", "norm"}),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_of_many_kinds(make_trainer, monkeypatch, kind):
    make, held, head = NETWORKS[kind]
    torch.manual_seed(0)
    model, watch, freezer = Classifier(make()), Watch(), probing(monkeypatch, gentle=True)
    if kind == "tied":
        monkeypatch.setattr(Sure, "forward", lambda self, inputs: torch.full((len(inputs),), 3.0))
    make_trainer(freezer, watch).fit(model)
    if kind == "one layer":  # there is nothing to decide: a single step was lost
        assert freezer.timeline.start.steps == 0 and not freezer.frozen
        assert moved(watch.states[0], watch.states[1]) == set() != moved(watch.states[0], watch.states[2])
        return
    start, during, after = (watch.states[n] for n in (0, STEPS - 1, STEPS))
    assert {name.rpartition(".")[0] for name in moved(start, during)} <= head and moved(start, during)
    assert moved(start, after) == set() and watch.optimizers[STEPS] == set()
    assert freezer.frozen == held and moved(start, watch.states[-1])
    frozen = [name.removeprefix("net.") for name in held]
    assert not [name for name in moved(start, watch.states[-1]) if name.rpartition(".")[0] in frozen]
    assert ("base" in " ".join(freezer.timeline.start.profile)) is False


def test_after_a_learning_rate_finder(make_trainer, monkeypatch):
    class Tuned(Classifier):
        def __init__(self):
            super().__init__(mlp())
            self.lr = 0.05

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.lr)

    model, watch, freezer = Tuned(), Watch(), probing(monkeypatch, gentle=True)
    start = copy.deepcopy(model.net.state_dict())
    make_trainer(LearningRateFinder(num_training_steps=10), freezer, watch).fit(model)
    assert moved(start, watch.states[0]) == set() and moved(start, watch.states[STEPS]) == set()
    assert freezer.timeline.start.steps == STEPS and freezer.frozen == ["net.0", "net.4"]


@pytest.mark.parametrize("fused", [True, False])
def test_under_a_grad_scaler_gradients_are_those_without(make_trainer, monkeypatch, fused):
    def profile(**trainer):
        net = mlp(norm=False)
        net[3].p = 0.0
        freezer = probing(monkeypatch, gentle=True)
        model = InOrder(net, lambda parameters: torch.optim.SGD(parameters, lr=0.01, fused=fused))
        make_trainer(freezer, **trainer).fit(model)
        return freezer.timeline.start, model.losses

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    start, losses = profile(plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    plain, wanted = profile()
    assert start.steps == plain.steps == STEPS
    assert list(start.profile.values()) == pytest.approx(list(plain.profile.values()), rel=0.05)
    assert losses == pytest.approx(wanted, rel=0.05)


def test_gradients_that_overflow_are_no_gradients(make_trainer, monkeypatch):
    freezer = probing(monkeypatch, gentle=True)
    model = Classifier(mlp(norm=False))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)  # halves until it fits
    make_trainer(freezer, max_epochs=8, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(model)
    assert freezer.timeline.start.steps >= 2 and freezer.frozen == ["net.0", "net.4"]


class Learns(torch.optim.SGD):
    """Begins with a state of every weight, and learns something that it keeps in its groups."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        for group in self.param_groups:
            group["d"] = 1.0
            for parameter in group["params"]:
                self.state[parameter] = {"sum": torch.zeros_like(parameter)}

    def step(self, closure=None):
        loss = closure() if closure else None
        with torch.no_grad():
            for group in self.param_groups:
                group["d"] *= 1.5
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self.state[parameter]["sum"] += parameter.grad.abs()
                        parameter -= group["lr"] * parameter.grad / (1 + self.state[parameter]["sum"])
        return loss


def test_what_an_optimizer_begins_with_is_put_back(make_trainer, monkeypatch):
    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == STEPS:
                (optimizer,) = trainer.optimizers
                assert {float(state["sum"].sum()) for state in optimizer.state.values()} == {0.0}
                assert optimizer.param_groups[0]["d"] == 1.0 and len(optimizer.state) == 12
                self.looked = True

    look = Look()
    make_trainer(probing(monkeypatch, gentle=False), look).fit(Classifier(mlp(), lambda p: Learns(p, 0.1)))
    assert look.looked


def test_embeddings_with_sparse_gradients_and_networks_without_products(make_trainer, monkeypatch):
    class Factors(Classifier):
        """Two embeddings and their elementwise product: no matrix product at all."""

        def __init__(self, head):
            super().__init__(None, lambda parameters: torch.optim.SGD(parameters, 0.1))
            self.users, self.items = (nn.Embedding(20, 4, sparse=True) for _ in range(2))
            self.head = nn.Linear(4, 1) if head else None

        def training_step(self, batch, batch_idx):
            product = self.users(batch[:, 0]) * self.items(batch[:, 1])
            return (self.head(product) if self.head else product.sum(1)).square().mean()

        def train_dataloader(self):
            return DataLoader(torch.randint(20, (64, 2), generator=torch.Generator().manual_seed(0)), 8)

    freezer = probing(monkeypatch, gentle=True)
    make_trainer(freezer, limit_val_batches=0).fit(Factors(head=True))
    assert all(value > 0 for value in freezer.timeline.start.profile.values())
    freezer = probing(monkeypatch, gentle=True)
    make_trainer(freezer, limit_val_batches=0).fit(Factors(head=False))
    assert not freezer.frozen and not freezer.timeline.start.held


def test_the_report_says_what_the_probe_saw(make_trainer, monkeypatch):
    def told(**how):
        freezer = probing(monkeypatch, gentle=True, **how)
        make_trainer(freezer).fit(Classifier(mlp()))
        return str(timeline_table(freezer.timeline).renderables[-1])

    assert "probe of 5 steps: 2 of 3 layers held from the start" in told()
    # Products forward: 192 + 256 held, 256 + 48 behind; their weight gradients, and one activation gradient of 48.
    assert f"is {448 / (752 + 304 + 48):.0%} of what a step still costs" in told()
    assert "of what a step still costs" not in told(cache_front=True)
