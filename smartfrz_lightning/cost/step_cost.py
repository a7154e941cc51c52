"""StepCost: what a training step costs, with any layers frozen."""

import operator
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from torch import nn

from smartfrz_lightning.layers.layer import Layer


@dataclass
class StepFlops:
    """Floating-point operations of training steps; a multiply-add counts as two."""

    forward: float = 0
    weight_gradient: float = 0
    activation_gradient: float = 0

    @property
    def total(self) -> float:
        """All three together."""
        return self.forward + self.weight_gradient + self.activation_gradient

    def __add__(self, other: "StepFlops") -> "StepFlops":
        return StepFlops(*map(operator.add, astuple(self), astuple(other)))

    def times(self, steps: float) -> "StepFlops":
        """FLOPs of so many of these steps."""
        return StepFlops(steps * self.forward, steps * self.weight_gradient, steps * self.activation_gradient)


@dataclass
class LayerFlops:
    """FLOPs of one layer in the forward pass of one step.

    Attributes:
        layer: Its name.
        own: Products with its weights.
        following: Products without weights (attention) between it and the next layer.
        passing: Products with weights that never train, between it and the next layer.
        inner: Of its own products, those behind others of its own: over time in a recurrent layer, the last projection
            of an attention.
    """

    layer: str
    own: float = 0
    following: float = 0
    passing: float = 0
    inner: float = 0

    @property
    def forward(self) -> float:
        """All of them."""
        return self.own + self.following + self.passing


@dataclass
class StepCost:
    """What a training step costs, from the FLOPs of its forward pass by layer.

    The weight gradient of a layer costs what its forward products cost. Activation gradients stop behind the first
    products of the first layer that trains: a product with a weight costs its forward FLOPs once more, one of two
    activations twice. Branches that run beside each other (a two-tower network) are taken as if one followed the other,
    and a layer that is called several times in a row as if once. What checkpointed blocks compute again is not counted.

    Attributes:
        layers: FLOPs of each layer, in forward order.
        before: Forward FLOPs before the first layer.
    """

    layers: list[LayerFlops] = field(default_factory=list)
    before: float = 0

    @property
    def full(self) -> StepFlops:
        """A step in which everything trains."""
        return self.when_frozen(())

    def when_frozen(self, frozen: Collection[str]) -> StepFlops:
        """A step in which these layers are frozen."""
        frozen = set(frozen)
        first = next((number for number, cost in enumerate(self.layers) if cost.layer not in frozen), len(self.layers))
        forward = self.before + sum(cost.forward for cost in self.layers)
        weight = sum(cost.own for cost in self.layers if cost.layer not in frozen)
        activation = sum(cost.own for cost in self.layers[first + 1 :])
        activation += sum(cost.inner for cost in self.layers[first : first + 1])
        activation += sum(2 * cost.following + cost.passing for cost in self.layers[first:])
        return StepFlops(forward, weight, activation)

    def relative(self, frozen: Collection[str]) -> float:
        """Cost of a step in which these layers are frozen, relative to one in which everything trains; 1 if unknown."""
        full = self.full.total
        return self.when_frozen(frozen).total / full if full else 1.0

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "StepCost":
        """What ``dataclasses.asdict`` gave."""
        return cls([LayerFlops(**layer) for layer in state["layers"]], state["before"])


def step_cost(model: nn.Module, layers: Sequence[Layer], segments: Sequence[tuple[str, float]]) -> StepCost:
    """Share the FLOPs of a forward pass among layers."""
    number_of = {
        name.rpartition(".")[0].partition(".parametrizations.")[0]: number
        for number, layer in reversed(list(enumerate(layers)))
        for name in layer.weights
    }
    cost = StepCost([LayerFlops(layer.name) for layer in layers])
    at = None
    for module, flops in segments:
        if module in number_of:
            at = number_of[module]
            cost.layers[at].own += flops
            cost.layers[at].inner += flops * _inner(model.get_submodule(module))
        elif at is None:
            cost.before += flops
        elif module and _multiplies(model, module):
            cost.layers[at].passing += flops
        else:
            cost.layers[at].following += flops
    return cost


def _inner(module: nn.Module) -> float:
    sizes = {name: p.numel() for name, p in module.named_parameters() if p.ndim > 1}
    if isinstance(module, nn.RNNBase):
        first = sum(size for name, size in sizes.items() if name.startswith("weight_ih_l0"))
        return 1 - first / sum(sizes.values())
    if isinstance(module, nn.MultiheadAttention):
        return sum(size for name, size in sizes.items() if name.startswith("out_proj.")) / sum(sizes.values())
    return 0.0


def _multiplies(model: nn.Module, module: str) -> bool:
    return any(parameter.ndim > 1 for parameter in model.get_submodule(module).parameters(recurse=False))
