"""Each freezing method against its own formula, computed by hand or by other means."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from models import Classifier, Manual, mlp, scheduled, sgd, still, two
from torch import nn

from smartfrz_lightning import (
    BudgetFreezeCallback,
    GradESFreezeCallback,
    GradientNormFreezeCallback,
    IntervalFreezeCallback,
    LinearFreezeCallback,
    MovementFreezeCallback,
    RandomFreezeCallback,
    SimilarityFreezeCallback,
    StaticFreezeCallback,
)

LAYERS = ["net.0", "net.4", "net.7", "net.9"]  # eight steps an epoch


def moments(freezer):
    return {event.layer: event.step for event in freezer.timeline.events}


class Watch(Callback):
    """Learning rates by parameter, before every optimizer step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        self.rates.append({name: rates[id(p)] for name, p in pl_module.named_parameters()})


def test_linear_keeps_the_groups_of_the_optimizer_apart(make_trainer):
    def two_groups(parameters):
        decay, none = [], []
        for parameter in parameters:
            (decay if parameter.ndim > 1 else none).append(parameter)
        return torch.optim.AdamW([{"params": decay, "lr": 1e-2}, {"params": none, "lr": 1e-3, "weight_decay": 0.0}])

    watch, model = Watch(), Classifier(mlp(), two_groups)
    trainer = make_trainer(LinearFreezeCallback(), watch)
    trainer.fit(model)
    assert watch.rates[3]["net.0.weight"] == pytest.approx(10 * watch.rates[3]["net.0.bias"])
    groups = trainer.optimizers[0].param_groups
    assert all(
        (group["weight_decay"] == 0) == (parameter.ndim == 1) for group in groups for parameter in group["params"]
    )
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_linear_refuses_a_scheduler(make_trainer):
    stepwise = scheduled(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1))
    with pytest.raises(ValueError, match="StepLR.*return the optimizer alone"):
        make_trainer(LinearFreezeCallback()).fit(Classifier(mlp(), stepwise))


def test_linear_refuses_an_optimizer_that_keeps_its_rates_to_itself(make_trainer):
    adafactor = pytest.importorskip("transformers").Adafactor
    with pytest.raises(ValueError, match="sets learning rates, and the optimizer keeps its own"):
        make_trainer(LinearFreezeCallback()).fit(Classifier(mlp(), lambda p: adafactor(p, lr=None, relative_step=True)))


def fast(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        (still, 8),
        (fast, None),
        (scheduled(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0), fast), 16),
    ],
    ids=["still", "moves", "still after an epoch"],
)
def test_similarity_freezes_what_stays_alike_over_an_epoch(make_trainer, tmp_path, optimizer, step):
    model = Classifier(mlp(norm=False), optimizer)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "end.ckpt")
    freezer = SimilarityFreezeCallback(str(tmp_path / "end.ckpt"), epsilon=1e-3)
    make_trainer(freezer).fit(model)
    assert moments(freezer) == (dict.fromkeys(LAYERS[:-1], step) if step else {})


@pytest.mark.parametrize(("interval", "exclude", "saves"), [(None, (), 0.2), (2, (), 0.2), (None, "net.0", 0.1)])
def test_interval_saves_what_was_asked_for(make_trainer, interval, exclude, saves):
    freezer = IntervalFreezeCallback(flops_reduction=saves, every_n_train_steps=interval, exclude=exclude)
    make_trainer(freezer, max_epochs=10).fit(Classifier(mlp()))
    steps = list(moments(freezer).values())
    assert list(moments(freezer)) == LAYERS[1 if exclude else 0 : -1]
    gaps = {after - before for before, after in zip(steps, steps[1:], strict=False)}
    assert gaps == {2} if interval else max(gaps) - min(gaps) <= 1
    assert freezer.timeline.saved == pytest.approx(saves, abs=0.01)  # moments are whole steps


@pytest.mark.parametrize(
    ("method", "arguments"), [(GradESFreezeCallback, {"tau": 5.0}), (BudgetFreezeCallback, {"budget": 0.9})]
)
def test_two_optimizers_as_one(make_trainer, method, arguments):
    def first_and_last(parameters):  # each has something that always trains
        parameters = list(parameters)
        return [sgd([*parameters[:4], *parameters[-2:]]), sgd(parameters[4:-2])]

    found = []
    for model in (Classifier(mlp(norm=False)), Manual(mlp(norm=False), first_and_last)):
        torch.manual_seed(0)  # of dropout
        freezer = method(**arguments, exclude="net.7")
        make_trainer(freezer, limit_val_batches=0).fit(model)
        found.append([(event.layer, event.kind, event.step) for event in freezer.timeline.events])
    assert found[0] == found[1] and found[0]


def test_grades_leaves_alone_what_a_step_does_not_use(make_trainer):
    class Skips(Classifier):
        def forward(self, x):
            x = self.net[:3](x)
            return self.net[6:](x if self.global_step % 2 else self.net[4:6](x))

    freezer = GradESFreezeCallback(tau=1e-9, grace=0.3)
    make_trainer(freezer, limit_val_batches=0).fit(Skips(mlp(norm=False)))
    assert not freezer.frozen


def test_interval_says_what_is_possible(make_trainer):
    with pytest.raises(ValueError, match="flops_reduction=0.9: 0.* is the most"):
        make_trainer(IntervalFreezeCallback(flops_reduction=0.9)).fit(Classifier(mlp()))


class Renamed(Classifier):
    def state_dict(self, *args, **kwargs):
        return {f"student.{name}": tensor.clone() for name, tensor in super().state_dict(*args, **kwargs).items()}


@pytest.mark.parametrize("kind", [Classifier, Renamed])
@pytest.mark.parametrize(("layers", "count"), [(2, 2), (0.5, 2), (0.3, 1), (0, 0)])
def test_static_front_never_moves(make_trainer, layers, count, kind):
    model = kind(mlp())
    start = {name: tensor.clone() for name, tensor in nn.Module.state_dict(model).items()}
    freezer = StaticFreezeCallback(layers=layers)
    make_trainer(freezer).fit(model)
    assert freezer.frozen == LAYERS[:count]
    ends = [0, 4, 7][count]
    for name, tensor in nn.Module.state_dict(model).items():
        assert torch.equal(tensor, start[name]) == (int(name.split(".")[1]) < ends), name


def test_static_too_many(make_trainer):
    with pytest.raises(ValueError, match="layers=4: Classifier has 3 layers"):
        make_trainer(StaticFreezeCallback(layers=4)).fit(Classifier(mlp()))


@pytest.mark.parametrize(("layers", "said"), [(2, True), (0.7, True), (1, False), (np.float64(0.25), False)])
def test_static_says_that_a_resumed_run_keeps_what_froze(make_trainer, tmp_path, layers, said):
    path = tmp_path / "one.ckpt"
    for again in (StaticFreezeCallback(layers=np.int64(1)), StaticFreezeCallback(layers)):
        trainer = make_trainer(again, max_epochs=2 + path.exists())
        trainer.fit(Classifier(mlp()), ckpt_path=path if path.exists() else None)
        trainer.save_checkpoint(path)
    says = f"layers={layers} is not used: the resumed run has 1 layers frozen."
    assert again.frozen == LAYERS[:1] and (says in again.timeline.notes) == said


def test_random_costs_what_the_other_run_cost(make_trainer, tmp_path):
    def deep(seed):
        torch.manual_seed(seed)
        hidden = [layer for _ in range(9) for layer in (torch.nn.Linear(16, 16), torch.nn.ReLU())]
        return torch.nn.Sequential(torch.nn.Linear(12, 16), *hidden, torch.nn.Linear(16, 3))

    other = IntervalFreezeCallback(flops_reduction=0.15, every_n_train_steps=4, report=str(tmp_path))
    make_trainer(other, max_epochs=6).fit(Classifier(deep(0)))
    drawn = [RandomFreezeCallback(str(tmp_path / "freeze_timeline.csv"), seed=seed) for seed in (1, 2)]
    (tmp_path / "b").mkdir()
    for freezer in drawn:
        make_trainer(freezer, max_epochs=6, default_root_dir=tmp_path / "b").fit(Classifier(deep(0)))
        assert freezer.timeline.saved == pytest.approx(other.timeline.saved, abs=0.02)
        assert set(moments(freezer).values()) <= set(moments(other).values())
    assert drawn[0].frozen != drawn[1].frozen != other.frozen


def test_random_needs_a_timeline_of_this_model(make_trainer, tmp_path):
    (tmp_path / "t.csv").write_text("index,layer,step\n0,elsewhere,3\n")
    with pytest.raises(ValueError, match="timeline is one of another model"):
        make_trainer(RandomFreezeCallback(str(tmp_path / "t.csv"))).fit(Classifier(mlp()))
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no freezing timeline"):
        RandomFreezeCallback(str(tmp_path / "t.csv"))


def test_a_second_fit_is_a_run_of_its_own(make_trainer):
    model, freezer = Classifier(mlp()), LinearFreezeCallback(t_0=0.5)
    make_trainer(freezer).fit(model)
    head = model.net[9].weight.clone()
    watch = Watch()
    make_trainer(freezer, watch).fit(model)
    assert watch.rates[0]["net.9.weight"] == 0.05 and not torch.equal(head, model.net[9].weight)

    model, freezer = Classifier(mlp()), MovementFreezeCallback(threshold=1e-9, window=4, snapshot_every_n_steps=1)
    make_trainer(freezer).fit(model)
    freezer.threshold = 100.0
    make_trainer(freezer).fit(model)
    assert set(moments(freezer).values()) == {24 + 8}


def test_layers_that_are_not_used_do_not_count(make_trainer):
    def run(freezer, unused):
        model = Classifier(mlp())
        if unused:
            model.unused = torch.nn.Linear(3, 3)
        torch.manual_seed(0)  # the same dropout in both
        make_trainer(freezer, max_epochs=4).fit(model)
        return moments(freezer)

    for make in (lambda: GradientNormFreezeCallback(alpha=0.5, every_n_train_steps=4), LinearFreezeCallback):
        assert run(make(), unused=True) == run(make(), unused=False) != {}


def test_the_length_of_a_run_is_known_in_whatever_steps_it_counts(make_trainer):
    """``max_steps`` counts the steps of all optimizers."""
    model, freezer = Manual(mlp(), two(6)), LinearFreezeCallback(t_0=0.5)
    trainer = make_trainer(freezer, max_epochs=-1, max_steps=48)
    trainer.fit(model)
    assert trainer.global_step == 48 and freezer.timeline.steps == 24
    # The first optimizer keeps its last layer.
    assert moments(freezer) == {"net.0": 12, "net.7": 20}
    rates = {group["layer"]: group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups}
    assert rates["net.9"] == pytest.approx(0.025 * (1 + math.cos(math.pi * 23 / 24)))


def test_a_budget_is_spent_by_gradients_that_did_not_overflow(make_trainer):
    class Skips(torch.optim.SGD):  # as under a GradScaler
        def step(self, closure=None):
            loss = closure()
            finite = all(
                p.grad is None or p.grad.isfinite().all() for group in self.param_groups for p in group["params"]
            )
            return super().step() if finite else loss

    class Overflows(Classifier):
        def on_after_backward(self):
            if self.global_step == 1:
                for parameter in self.parameters():
                    parameter.grad.fill_(float("inf"))

    freezer = BudgetFreezeCallback(budget=0.6)
    make_trainer(freezer, max_epochs=1).fit(Overflows(mlp(), lambda p: Skips(p, 0.05)))
    assert {event.step for event in freezer.timeline.events} == {3} and len(freezer.frozen) < len(LAYERS) - 1
