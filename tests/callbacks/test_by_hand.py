"""What each method decides in cases that are worked out by hand: numbers, no formula."""

import math
from dataclasses import replace

import pytest
import torch
from models import Classifier, mlp
from torch import nn

from smartfrz_lightning import (
    AutoFreezeCallback,
    BudgetFreezeCallback,
    GradESFreezeCallback,
    GradientNormFreezeCallback,
    LinearFreezeCallback,
    MovementFreezeCallback,
)
from smartfrz_lightning.callbacks.budget import choose_layers
from smartfrz_lightning.engine import TrainingRun
from smartfrz_lightning.layers import find_layers


def run_of(weights):
    """A chain of so many layers, each a matrix of 2 x 2, with the last one the output."""
    net = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(weights)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    layers = find_layers(net, torch.rand(1, 2))
    return TrainingRun(net, [optimizer], layers=layers, batches_per_epoch=8, total_batches=8)


def give(run, gradients):
    """Every layer's gradient: two values, the others zero."""
    for layer, (a, b) in zip(run.model, gradients, strict=True):
        layer.weight.grad = torch.tensor([[a, 0.0], [0.0, b]])


def auto():
    method = AutoFreezeCallback(every_n_train_steps=2)
    method.reset()
    return method


def test_autofreeze_by_hand():
    """Gradients are summed over two steps: (3, 4) and (3, 4) have a norm of 10."""
    run, method = run_of(5), auto()
    for _ in range(2):
        give(run, [(3, 4), (0, 5), (0, 10), (6, 8), (1, 1)])
        method.gradients_ready(run, run.optimizers[0])
    assert method.select(run) == [] and method._norms == {"0": 10, "1": 10, "2": 20, "3": 20}
    give(run, [(0, 9), (0, 9.5), (0, 10), (0, 10), (1, 1)])  # changes of 0.1, 0.05, 0.5, 0.5: the median is 0.3
    method.gradients_ready(run, run.optimizers[0])
    assert method.select(run) == ["0", "1"]

    run, method = run_of(4), auto()
    give(run, [(3, 4), (0, 10), (5, 5), (1, 1)])
    method.gradients_ready(run, run.optimizers[0])
    assert method.select(run) == [] and method._norms == pytest.approx({"0": 5, "1": 10, "2": math.sqrt(50)})
    give(run, [(0, 2.5), (0, 9), (0, 8), (1, 1)])  # changes of 0.5, 0.1, 0.13: the second has to wait for the first
    method.gradients_ready(run, run.optimizers[0])
    assert method.select(run) == []


@pytest.mark.parametrize(
    ("alpha", "frozen"),
    # Norms 5, 4, 3, 1, 2, 6: three layers lie before the least; a third of six is two, all of them is more than three.
    [(1 / 3, ["0", "1"]), (1.0, ["0", "1", "2"]), (0.1, [])],
)
def test_gradient_norm_by_hand(alpha, frozen):
    run, method = run_of(6), GradientNormFreezeCallback(alpha=alpha)
    method.reset()
    for check in range(2):
        give(run, [(3, 4), (0, 4), (3, 0), (1, 0), (0, 2), (6, 0)])
        method.gradients_ready(run, run.optimizers[0])
        assert method.select(run) == (frozen if check else [])


def test_gradient_norm_goes_on_behind_a_layer_that_always_trains():
    run, method = run_of(6), GradientNormFreezeCallback(alpha=0.5)
    run.layers[0] = replace(run.layers[0], always_trains="excluded")
    method.reset()
    for norms, frozen in (((6, 4, 3, 2, 1, 6), []), ((6, 4, 3, 2, 1, 6), ["1", "2"]), ((6, 0, 0, 2, 1, 6), ["3"])):
        give(run, [(norm, 0) for norm in norms])
        method.gradients_ready(run, run.optimizers[0])
        assert method.select(run) == frozen
        run.frozen += frozen


def test_linear_by_hand(make_trainer):
    """Three epochs of eight steps, four layers: they end after 12, 16, 20 and 24 of 24 steps."""
    rates = []

    class Watch(LinearFreezeCallback):
        def step_done(self, run):
            rate = {id(p): group["lr"] for group in run.optimizers[0].param_groups for p in group["params"]}
            rates.append({layer.name: rate[id(run.model.get_parameter(layer.weights[0]))] for layer in run.layers})

    freezer = Watch(t_0=0.5)
    make_trainer(freezer, max_epochs=3, limit_val_batches=0).fit(Classifier(mlp(norm=False)))
    assert [(event.layer, event.step) for event in freezer.timeline.events] == [
        ("net.0", 12),
        ("net.4", 16),
        ("net.7", 20),
    ]
    # Half-way a cosine is at half, at a third of the way at three quarters.
    assert rates[6]["net.0"] == pytest.approx(0.025) and rates[4]["net.0"] == pytest.approx(0.0375)
    assert rates[8]["net.4"] == pytest.approx(0.025) and rates[10]["net.7"] == pytest.approx(0.025)
    assert rates[12]["net.9"] == pytest.approx(0.025) and rates[16]["net.9"] == pytest.approx(0.0125)
    assert rates[8]["net.9"] == pytest.approx(0.0375)


def test_grades_by_hand():
    """Half of a run of eight steps is grace; norms are sums of absolute values."""
    run, method = run_of(4), GradESFreezeCallback(tau=3.0, grace=0.5)
    method.reset()
    for step, gradients in enumerate(
        [[(9, 9), (9, 9), (9, 9)], [(3, 4), (0, 10), (5, 5)], [(3, 2), (0, 13), (4, 4)], [(3, 2), (0, 12), (9, 9)]]
    ):
        give(run, [*gradients, (1, 1)])
        run.progress = (step + 2) / 8
        method.gradients_ready(run, run.optimizers[0])
        run.progress = (step + 3) / 8
        if step >= 1:
            assert method.check_due(run)
            # Changes of 11, 10, 8; then 2, 3, 2; then 0, 1, 10.
            assert method.select(run) == [[], ["0", "2"], ["0", "1"]][step - 1]
        else:
            assert not method.check_due(run)


class Worth(BudgetFreezeCallback):
    """Compares what layers are worth with their gradients, at a rate of 0.1."""

    def reset(self):
        super().reset()
        self.seen = getattr(self, "seen", [])

    def step_done(self, run):
        gradients = {name: gradient.abs().square().sum() for name, (_, gradient) in self._before.items()}
        super().step_done(run)
        if gradients:
            expected = {la.name: 0.1 * float(sum(gradients[n] for n in la.parameters)) for la in run.layers[:-1]}
            assert {name: self._values[name] for name in expected} == pytest.approx(expected, rel=1e-4)
            self.seen.append(run.steps)


def test_budget_by_hand(make_trainer):
    """A chain of three layers and the head, whose weight gradients cost 4, 4, 4, 1; worth 1 a unit of gradient."""
    names, own, down = ["a", "b", "c", "head"], [4, 4, 4, 1], [9, 5, 1, 0]
    worth = {"a": 5.0, "b": 1.0, "c": 4.5}

    def chosen(budget):
        return choose_layers(names, own, down, worth, {"head"}, budget)

    assert chosen(22.1) == names  # all costs 13 + 9
    assert chosen(18.1) == ["a", "c", "head"]  # 9.5 for 9 + 9
    assert chosen(14.1) == ["b", "c", "head"]  # 5.5 for 9 + 5, where a alone is worth 5
    assert chosen(13.9) == ["c", "head"]
    assert chosen(5.9) == ["head"]
    with pytest.raises(ValueError, match=r"budget: the layers that always train \(head\) cost 2.00 times"):
        chosen(0.5)
    assert choose_layers(names, own, down, {**worth, "c": -1.0}, {"head"}, 22.1) == ["a", "b", "head"]

    # In a real run: plain SGD moves by -rate * gradient, so a layer is worth the square of its gradient times the rate.
    freezer = Worth(budget=0.7)
    model = Classifier(mlp(norm=False), lambda p: torch.optim.SGD(p, lr=0.1))
    make_trainer(freezer, max_epochs=3, limit_val_batches=0).fit(model)
    assert freezer.seen == [2, 9, 17]  # the second step, and the first of every epoch
    periods = {layer.name: freezer.timeline.periods(layer.name) for layer in freezer.layers}
    for step in (2, 9, 17):
        frozen = [name for name, own in periods.items() if any(a <= step < (b or math.inf) for a, b in own)]
        assert 0.4 < freezer.timeline.cost.relative(frozen) <= 0.7
    assert {event.kind for event in freezer.timeline.events} == {"freeze", "thaw"}


def test_movement_by_hand():
    method = MovementFreezeCallback(threshold=0.25, window=2)
    # From (3, 4) to (3, 5): 1 of 5.83; to (6, 8): 5 of 10.
    windows = torch.tensor([[[3.0, 4.0], [3.0, 5.0]], [[3.0, 4.0], [6.0, 8.0]]])
    assert method.ready(windows, ["a", "b"], [1, 2]) == {"a": pytest.approx(1 - (1 / math.sqrt(34)) / 0.25)}
    assert method.ready(windows, ["a", "b"], [1]) == {}  # the window is not full


def test_budget_of_complex_weights(make_trainer):
    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(7, 7, dtype=torch.complex64))

        def forward(self, x):
            return torch.fft.irfft(torch.fft.rfft(x) @ self.weight, n=12)

    freezer, net = Worth(budget=0.8), nn.Sequential(Waves(), Waves(), nn.Linear(12, 3))
    make_trainer(freezer, limit_val_batches=0).fit(Classifier(net, lambda p: torch.optim.SGD(p, lr=0.1)))
    assert freezer.seen == [2, 9, 17] and freezer.timeline.events
