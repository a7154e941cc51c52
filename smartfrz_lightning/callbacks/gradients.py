"""Gradients of layers, summed up between two checks."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from smartfrz_lightning.layers.layer import Layer


def gradients_of(model: nn.Module, names: Iterable[str], optimizer: Optimizer) -> dict[str, Tensor]:
    """Of these parameters, the gradients that an optimizer is about to step with."""
    stepping = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = {name: model.get_parameter(name) for name in names}
    return {name: p.grad for name, p in own.items() if id(p) in stepping and p.grad is not None}


class LayerGradients:
    """The sum of each layer's gradients over optimizer steps; it takes as much memory as the layers."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, model: nn.Module, layers: Iterable[Layer], optimizer: Optimizer) -> None:
        """Add the gradients that an optimizer is about to step with; a step that overflowed counts for nothing."""
        found = gradients_of(model, (name for layer in layers for name in layer.parameters), optimizer)
        if not found or not torch.isfinite(get_total_norm(list(found.values()))):
            return
        for name, gradient in found.items():
            if name in self._sums:
                self._sums[name] += gradient
            else:
                self._sums[name] = gradient.detach().clone()

    def norms(self, layers: Iterable[Layer]) -> dict[str, float]:
        """L2 norm of each layer's sum, all its parameters taken as one vector; 0 without gradients."""
        return {
            layer.name: float(get_total_norm([self._sums[n] for n in layer.parameters if n in self._sums]))
            for layer in layers
        }

    def clear(self) -> None:
        """Start again from zero."""
        self._sums.clear()

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return self._sums

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up saved sums."""
        self._sums = dict(state)
