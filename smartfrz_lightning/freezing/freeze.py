"""Freeze and thaw layers of a plain ``nn.Module``."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from smartfrz_lightning.layers.layer import Layer


def freeze(model: nn.Module, layers: Iterable[Layer], optimizers: Iterable[Optimizer] = ()) -> None:
    """Stop layers from changing, from the very next optimizer step on.

    Their parameters take no gradient any more and lose the one they have, so no optimizer moves them, whatever its
    momentum or weight decay; their optimizer state is dropped to free memory, but they keep their place in the
    parameter groups. Modules that move in training mode (BatchNorm, spectral norm) go to eval mode. Dropout goes on as
    before, inside a frozen layer (attention, LSTM) too: what the layers behind it see keeps its distribution.
    """
    layers, optimizers = list(layers), with_nested(optimizers)
    for layer in layers:
        for name in layer.parameters:
            parameter = model.get_parameter(name)
            parameter.requires_grad_(False)
            parameter.grad = None
            for optimizer in optimizers:
                optimizer.state.pop(parameter, None)
        for name in layer.stateful:
            model.get_submodule(name).training = False  # of this one module alone, not of what it may contain
    for optimizer in optimizers:
        if layers and isinstance(optimizer, torch.optim.LBFGS):
            optimizer.state.clear()  # its curvature history spans all parameters and would move the frozen ones


def with_nested(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """These optimizers, and those that they hold as attributes, as Lookahead does."""
    found = list(optimizers)
    for optimizer in found:  # which grows
        found += [inner for inner in vars(optimizer).values() if isinstance(inner, Optimizer) and inner not in found]
    return found


def thaw(model: nn.Module, layers: Iterable[Layer]) -> None:
    """Let frozen layers train again; their modules go back to the mode of the model."""
    for layer in layers:
        for name in layer.parameters:
            model.get_parameter(name).requires_grad_(True)
        for name in layer.stateful:
            model.get_submodule(name).training = model.training
