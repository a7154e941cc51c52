"""BudgetFreezeCallback: the layers that matter most train, within a budget of FLOPs (GreenTrainer, ElasticTrainer)."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.callbacks.gradients import gradients_of
from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.stages.start import check_shares

_UNITS = 1000
"""The budget is divided into so many units, to which costs are rounded up."""


class BudgetFreezeCallback(FreezingCallback):
    r"""Adaptive backpropagation under a budget (Huang et al. 2023, arXiv 2309.13192 and 2312.14227).

    A layer is worth ``-sum(dw * dL/dw)``, the loss that its update of one step is expected to take away (section 3.2 of
    GreenTrainer). Of all choices whose step costs at most ``budget`` of a full one, the most valuable trains: every
    chosen layer costs its weight gradient, and the deepest one the activation gradients from the output down to it.
    Dynamic programming finds it (section 3.3). Every epoch it is chosen anew; for that, everything trains for one step.

    The sources leave open: a unit is a layer as this package finds it; the update is that of the very step whose
    gradients are taken; costs are rounded up to a thousandth of the budget.

    - **When**: a step may cost so much and no more, and what matters may change while training goes on.
    - **When not**: under ``torch.compile``, which compiles anew whenever other layers train.
    - **Cost**: one full step an epoch; a copy of the weights during it.
    - **Source**: Huang et al. 2023, "Towards Green AI in Fine-tuning Large Language Models via Adaptive
      Backpropagation" (GreenTrainer), and "ElasticTrainer".

    Args:
        budget: FLOPs that a step may cost, as a share of a full one; its forward pass alone is about a third.
        every_n_epochs: Choose anew after every n-th epoch.
        kwargs: Arguments of ``FreezingCallback``, such as ``exclude``.

    Raises:
        ValueError: ``budget`` is not between 0 and 1; in the first steps: what always trains costs more than it.
    """

    works_sharded = False
    thaws = True

    def __init__(self, budget: float = 0.5, every_n_epochs: int = 1, **kwargs: Any) -> None:
        super().__init__(every_n_epochs=every_n_epochs, **kwargs)
        check_shares(budget=budget)
        self.budget = budget

    def reset(self) -> None:
        self._choose_after = 2  # steps: the first one shows the layers
        self._values: dict[str, float] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def start(self, run: TrainingRun) -> None:
        if not run.steps:
            self._choose_after = 2

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        if run.steps + 1 != self._choose_after or not run.is_first_process:
            return
        names = (name for layer in run.active for name in layer.parameters)
        for name, gradient in gradients_of(run.model, names, optimizer).items():
            self._before[name] = run.model.get_parameter(name).detach().clone(), gradient.clone()

    @torch.no_grad()
    def step_done(self, run: TrainingRun) -> None:
        for layer in run.active:
            known = [name for name in layer.parameters if name in self._before]
            if known:
                moved = [(run.model.get_parameter(n) - self._before[n][0], self._before[n][1]) for n in known]
                gains = [(change * gradient.conj()).sum().real for change, gradient in moved]  # of complex weights too
                self._values[layer.name] = -float(sum(gains))
        self._before.clear()
        if run.steps == self._choose_after and run.agree(not all(map(math.isfinite, self._values.values()))):
            self._choose_after += 1  # gradients overflowed under AMP

    def check_due(self, run: TrainingRun) -> bool:
        return run.steps == self._choose_after

    def select(self, run: TrainingRun) -> Decision:
        if (
            run.steps != self._choose_after or not self._values or run.cost is None
        ):  # an epoch is over: everything trains for one step
            return Decision(thaw=run.frozen)
        cost, full = run.cost, run.cost.full
        names = [layer.name for layer in run.layers]
        fixed = {layer.name for layer in run.layers if layer.always_trains}
        # Activation gradients down to each layer, if that is the deepest one that trains.
        down = [cost.when_frozen(names[:at]).activation_gradient for at in range(len(names))]
        own = [cost.when_frozen({*names} - {name}).weight_gradient for name in names]
        chosen = choose_layers(names, own, down, self._values, fixed, self.budget * full.total - full.forward)
        return Decision(freeze=[layer.name for layer in run.active if layer.name not in chosen])

    def changed(self, run: TrainingRun, frozen: Collection[str], thawed: Collection[str]) -> None:
        if thawed:
            self._choose_after = run.steps + 1

    def method_state(self) -> dict[str, Any]:
        return {"choose_after": self._choose_after, "values": self._values}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        self._choose_after, self._values = state["choose_after"], dict(state["values"])


def choose_layers(
    names: Sequence[str],
    own: Sequence[float],
    down: Sequence[float],
    values: dict[str, float],
    fixed: Collection[str],
    budget: float,
) -> list[str]:
    """The most valuable layers whose backward pass fits into a budget, in forward order, by dynamic programming.

    A layer costs its ``own`` weight gradient, the deepest one that trains the activation gradients ``down`` to it; the
    ``fixed`` ones train in any case.
    """
    always = [at for at, name in enumerate(names) if name in fixed]
    least = sum(own[at] for at in always) + (down[always[0]] if always else 0)
    if budget <= 0:
        raise ValueError("budget: the forward pass alone costs more; raise it")
    if least > budget:
        raise ValueError(
            f"budget: the layers that always train ({', '.join(names[at] for at in always[:3])}) cost "
            f"{least / budget:.2f} times what is left of it after the forward pass; raise budget or exclude less"
        )
    unit = budget / _UNITS
    room = _UNITS - _rounded_up(sum(own[at] for at in always), unit)
    deepest_fixed = always[0] if always else len(names)
    best: tuple[float, list[int]] = (0.0, [])
    # By units spent on weight gradients: the most value, and what is chosen for it; from the output on.
    table: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * (room + 1)
    for at in reversed(range(len(names))):
        value, cost = values.get(names[at], 0.0), _rounded_up(own[at], unit)
        if names[at] in fixed or value <= 0:
            continue
        left = room - _rounded_up(down[min(at, deepest_fixed)], unit) - cost
        if left >= 0 and table[left][0] + value > best[0]:
            best = table[left][0] + value, [*table[left][1], at]
        for units in range(room, cost - 1, -1):
            with_it = table[units - cost][0] + value
            if with_it > table[units][0]:
                table[units] = with_it, (*table[units - cost][1], at)
    return [names[at] for at in sorted({*best[1], *always})]


def _rounded_up(cost: float, unit: float) -> int:
    return -int(-cost // unit) if unit > 0 else 0
