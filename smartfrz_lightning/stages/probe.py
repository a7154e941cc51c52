"""Probe: the gradients of all layers in the first steps of a run, in which only the heads move."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smartfrz_lightning.engine.shadow import may_move
from smartfrz_lightning.freezing.freeze import with_nested
from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.history.statistics_shift import statistics_shift
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.layers.put_back import put_back

_SAMPLE = 1024  # weights a layer
_ABSENT = object()  # in a group, before a step has added it


class Probe:
    """Watches gradients without letting them act, and leaves no trace.

    While an optimizer steps, it holds the parameters of the heads alone, as the gradients of the others are to be those
    of heads that know something; all other gradients are zero. Between two batches the model and its optimizers are as
    they came, so that a validation, an average of the weights or a checkpoint sees nothing of the probe.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._model, self._optimizers = model, with_nested(optimizers)
        self._layers: list[Layer] = []
        self._heads: dict[str, nn.Parameter] = {}
        self._before = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
        self._before |= {name: model.get_parameter(name).detach().clone() for name in may_move(model, 1)}
        self._moved: dict[str, Tensor] = {}
        self._aside = False  # whether what the probe moved is put aside
        self._states: list[dict[str, Any]] = [{} for _ in self._optimizers]  # of the heads, as the probe left them
        self._at_step: dict[int, dict[str, Any]] = {}  # what all groups hold before a step, by id
        self._settings: dict[int, dict[str, Any]] = {}  # what steps have changed in them, as the probe left it
        self._own_settings: dict[int, dict[str, Any]] = {}  # and as it came
        self._own_states: list[dict[str, Any]] = [{} for _ in self._optimizers]  # those that came
        self._groups: list[tuple[dict[str, Any], list]] = []  # those that hold the heads alone now
        self._rows: list[Tensor] = []
        self._row: Tensor | None = None
        self.looked = False
        """Whether gradients were taken in this step."""

    @property
    def steps(self) -> int:
        """Steps whose gradients were watched."""
        return len(self._rows)

    def watch(self, layers: Sequence[Layer]) -> None:
        """These are the layers."""
        self._layers = list(layers)
        self._sampler = WeightSampler(self._model, self._layers, _SAMPLE)
        names = [name for layer in layers if layer.always_trains == "output" for name in layer.parameters]
        self._heads = {name: self._model.get_parameter(name) for name in names}
        for name, parameter in self._heads.items():
            self._before.setdefault(name, parameter.detach().clone())
        self._own_states = [
            {name: copy.deepcopy(optimizer.state[p]) for name, p in self._heads.items() if p in optimizer.state}
            for optimizer in self._optimizers
        ]

    @torch.no_grad()
    def before_batch(self) -> None:
        """Go on with the heads as the probe left them."""
        if self._aside:
            self._set(self._moved, self._states, self._settings)
            self._aside = False

    @torch.no_grad()
    def take_gradients(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step: note its gradients down, and leave it the heads alone."""
        self.looked = True
        self.before_batch()  # another optimizer may have stepped in this batch
        self._at_step = self._at_step or {id(group): _held(group) for group in self._all_groups()}
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if self._row is None:
            self._row = self._empty().zero_()
        own = [any(id(self._model.get_parameter(n)) in held for n in layer.parameters) for layer in self._layers]
        now = self._sampler.gradients(torch.empty_like(self._row))
        mask = torch.tensor(own, device=now.device)
        self._row[mask] = now[mask]
        heads = {id(parameter) for parameter in self._heads.values()}
        stock = type(optimizer).__module__.startswith("torch.optim")
        for group in optimizer.param_groups:
            kept = [parameter for parameter in group["params"] if id(parameter) in heads]
            for parameter in group["params"]:
                if id(parameter) in heads or parameter.grad is None:
                    continue
                if kept or stock:  # whoever reads gradients now may expect one of each
                    parameter.grad.zero_()
                else:
                    parameter.grad = None  # not every optimizer does with an empty group
            if kept or stock:
                self._groups.append((group, group["params"]))
                group["params"] = kept

    @torch.no_grad()
    def optimizer_stepped(self) -> None:
        """An optimizer has stepped, or the batch is over: everything is as it came until the next one."""
        for group, parameters in reversed(self._groups):  # SAM takes gradients twice in a step
            group["params"] = parameters
        self._groups.clear()
        self.set_aside()

    def batch_done(self, stepped: bool) -> None:
        """A batch is over."""
        heads = self._heads.items() if self._at_step else ()  # no optimizer has told that it stepped
        if all(torch.equal(p, self._moved.get(name, self._before[name])) for name, p in heads):
            self._at_step = {}  # a GradScaler skipped the step: what has changed since, a scheduler has
        self.optimizer_stepped()
        if stepped:
            self.looked = False
            if self._row is not None and torch.isfinite(self._row).all():  # an overflow under AMP is no gradient
                self._rows.append(self._row)
            self._row = None

    @torch.no_grad()
    def set_aside(self) -> None:
        """Put the model and its optimizers back, and keep what the probe has moved for the next batch."""
        if self._aside:
            return
        self._aside = True
        now = {name: self._tensor(name) for name in self._before}
        self._moved = {name: tensor.detach().clone() for name, tensor in now.items() if tensor is not None}
        self._states = [
            {name: optimizer.state[p] for name, p in self._heads.items() if p in optimizer.state}
            for optimizer in self._optimizers
        ]
        for group in self._all_groups() if self._at_step else ():
            now = _held(group)
            held, own = self._at_step.get(id(group), now), self._own_settings.setdefault(id(group), {})
            for name in {*held, *now}:
                if not _alike(held.get(name, _ABSENT), now.get(name, _ABSENT)):
                    own.setdefault(name, held.get(name, _ABSENT))
            self._settings[id(group)] = {name: now.get(name, _ABSENT) for name in own}
        self._at_step = {}
        self._set(self._before, copy.deepcopy(self._own_states), self._own_settings)

    def _set(self, tensors: dict[str, Tensor], states: list[dict[str, Any]], settings: dict[int, dict]) -> None:
        for name, tensor in tensors.items():
            put_back(self._tensor(name), tensor)
        for optimizer, own in zip(self._optimizers, states, strict=True):
            for name, parameter in self._heads.items():
                optimizer.state.pop(parameter, None)
                if name in own:
                    optimizer.state[parameter] = own[name]
        for group in self._all_groups():
            for name, value in settings.get(id(group), {}).items():
                if value is _ABSENT:
                    group.pop(name, None)
                else:
                    group[name] = copy.deepcopy(value)

    def gradients(self) -> Tensor:
        """``[steps, layers, sample_size]``, on the CPU; the layers in forward order."""
        return torch.stack([row.cpu() for row in self._rows])

    def weights(self) -> Tensor:
        """``[layers, sample_size]``: the watched weights, on the CPU."""
        return self._sampler(self._empty()).cpu()

    def shift(self) -> float:
        """How far the statistics of the batches lie from those that the network came with, in nats."""
        norms = [name for layer in self._layers for name in layer.stateful]
        return statistics_shift(self._model, norms, self._before, self._moved)

    def _all_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _tensor(self, name: str) -> Tensor | None:
        module, _, own = name.rpartition(".")
        return getattr(self._model.get_submodule(module), own)

    def _empty(self) -> Tensor:
        where = next(self._model.parameters()).device
        return torch.empty(len(self._layers), _SAMPLE, dtype=torch.float, device=where)


def _held(group: dict[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # tensors or arrays in a list
        return False
