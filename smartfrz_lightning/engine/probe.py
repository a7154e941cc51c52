"""Probe: the first steps of a training, in which the gradients of all layers are watched and only the head moves."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.history.statistics_shift import statistics_shift
from smartfrz_lightning.layers.layer import Layer

_SCHEDULED = {"params", "param_names", "lr", "initial_lr", "max_lr", "min_lr", "momentum", "betas", "max_momentum"}
_SCHEDULED |= {"base_momentum", "weight_decay"}


class Probe:
    """Watches gradients without letting them act, and leaves no trace.

    The gradients are taken away just before an optimizer steps, so that it neither moves a weight nor decays it nor
    begins a state for it. The layers that lead to the loss do move meanwhile, as the gradients of the others are to be
    those of a head that knows something. :meth:`put_back` undoes that, and what moved in running statistics.

    Args:
        model: The model, before its first step.
        optimizers: All that step.
        sample_size: Watched weights a layer.
        seed: Fixes which.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.engine.probe import Probe
        >>> from smartfrz_lightning.layers import find_layers
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> optimizer, before = torch.optim.SGD(net.parameters(), 0.1, 0.9), net[2].weight.clone()
        >>> probe = Probe(net, [optimizer], sample_size=16)
        >>> for step in range(3):
        ...     net(torch.rand(8, 4)).square().sum().backward()
        ...     probe.take_gradients(optimizer)
        ...     optimizer.step()
        ...     if step == 0:
        ...         probe.watch(find_layers(net, torch.rand(8, 4)))
        ...     probe.step_done()
        >>> probe.gradients().shape, net[2].weight.equal(before)
        (torch.Size([3, 2, 16]), False)
        >>> probe.put_back()
        >>> net[2].weight.equal(before), len(optimizer.state), net[1].num_batches_tracked.item()
        (True, 0, 0)
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], sample_size: int = 1024, seed: int = 0
    ) -> None:
        self._model, self._optimizers, self._sample_size, self._seed = model, optimizers, sample_size, seed
        self._layers: list[Layer] = []
        self._before = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        # Some optimizers begin with a state of every weight, and some keep in their groups what they learn.
        self._states = [
            {names[id(p)]: copy.deepcopy(state) for p, state in optimizer.state.items() if id(p) in names}
            for optimizer in optimizers
        ]
        self._settings = [[_own(group) for group in optimizer.param_groups] for optimizer in optimizers]
        self._gradients: list[Tensor] = []
        self._row: Tensor | None = None
        self._first: dict[str, Tensor] = {}  # gradients of the first step, until the layers are known
        self.looked = False
        """Whether gradients were taken in this step."""

    @property
    def sharded(self) -> bool:
        """Whether the weights lie on several processes."""
        return any(isinstance(parameter, DTensor) for parameter in self._model.parameters())

    @property
    def steps(self) -> int:
        """Steps whose gradients were watched."""
        return len(self._gradients)

    def watch(self, layers: Sequence[Layer]) -> None:
        """These are the layers."""
        self._layers = list(layers)
        self._sampler = WeightSampler(self._model, self._layers, self._sample_size, self._seed)
        parameters = dict(self._model.named_parameters())
        heads = {name for layer in self._heads for name in layer.parameters}
        for name in heads:
            self._before.setdefault(name, parameters[name].detach().clone())
        moves = heads | {f"{module}." for layer in self._layers for module in layer.stateful}
        self._before = {n: t for n, t in self._before.items() if n in moves or f"{n.rpartition('.')[0]}." in moves}
        self._states = [{n: state for n, state in states.items() if n in heads} for states in self._states]
        if self._first:
            for name, gradient in self._first.items():
                parameters[name].grad = gradient
            self._row = self._sampler.gradients(self._empty())
            for name in self._first:
                parameters[name].grad = None
            self._first.clear()

    @property
    def _heads(self) -> list[Layer]:
        return [layer for layer in self._layers if layer.pinned == "output"]

    @torch.no_grad()
    def take_gradients(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step: note its gradients down and take them away, but those of the head."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.looked = True
        if self._layers:
            if self._row is None:
                self._row = self._empty().zero_()
            own = [any(id(self._model.get_parameter(n)) in held for n in layer.parameters) for layer in self._layers]
            now = self._sampler.gradients(torch.empty_like(self._row))
            mask = torch.tensor(own, device=now.device)
            self._row[mask] = now[mask]
        else:
            named = self._model.named_parameters()
            self._first |= {n: p.grad for n, p in named if id(p) in held and p.grad is not None}
        heads = {id(self._model.get_parameter(name)) for layer in self._heads for name in layer.parameters}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in heads:
                    parameter.grad = None

    def step_done(self) -> None:
        """All optimizers that step in this batch have."""
        self.looked = False
        if self._row is not None and torch.isfinite(self._row).all():  # an overflow under AMP is no gradient
            self._gradients.append(self._row)
        self._row = None

    def gradients(self) -> Tensor:
        """``[steps, layers, sample_size]``, on the CPU; the layers in forward order."""
        return torch.stack([gradient.cpu() for gradient in self._gradients])

    def weights(self) -> Tensor:
        """``[layers, sample_size]``: the watched weights, on the CPU."""
        return self._sampler(self._empty()).cpu()

    def shift(self) -> float:
        """How far the statistics of the batches lie from those that the network came with, before :meth:`put_back`."""
        norms = [name for layer in self._layers for name in layer.stateful]
        return statistics_shift(self._model, norms, self._before)

    def _empty(self) -> Tensor:
        return torch.empty(len(self._layers), self._sample_size, device=_device(self._model))

    @torch.no_grad()
    def put_back(self) -> None:
        """Head, optimizer and running statistics are as they were."""
        parameters = dict(self._model.named_parameters())
        for name, tensor in self._before.items():
            if name not in parameters:
                self._model.get_buffer(name).copy_(tensor)
                continue
            parameters[name].copy_(tensor)
            for optimizer, states in zip(self._optimizers, self._states, strict=True):
                optimizer.state.pop(parameters[name], None)
                if name in states:
                    optimizer.state[parameters[name]] = copy.deepcopy(states[name])
        for optimizer, settings in zip(self._optimizers, self._settings, strict=True):
            for group, own in zip(optimizer.param_groups, settings, strict=True):
                group.update(copy.deepcopy(own))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed probe needs."""
        about = {"states": self._states, "settings": self._settings}
        return {"before": dict(self._before), "gradients": list(self._gradients), **copy.deepcopy(about)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        device = _device(self._model)
        self._before = dict(state["before"])
        self._gradients = [gradient.to(device) for gradient in state["gradients"]]
        self._states, self._settings = state["states"], state["settings"]


def _own(group: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer keeps in a group, but for what schedulers set."""
    return {name: copy.deepcopy(value) for name, value in group.items() if name not in _SCHEDULED}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
