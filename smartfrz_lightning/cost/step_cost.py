"""StepCost: what a training step costs, with any layers frozen."""

import operator
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

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
        inner: Of its own products, those behind others of its own: over time in a recurrent layer, the output of a
            tied embedding.
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


def step_cost(layers: Sequence[Layer], products: Sequence[tuple[str, float]]) -> StepCost:
    """Share the FLOPs of a forward pass among layers.

    Args:
        layers: In forward order.
        products: Those of the pass, as ``(parameter, FLOPs)``; without a name where no parameter is multiplied.
    """
    number_of = {name: number for number, layer in enumerate(layers) for name in layer.parameters}
    cost = StepCost([LayerFlops(layer.name) for layer in layers])
    first: dict[int, str] = {}  # the weight that each layer multiplies first
    at = None
    for name, flops in products:
        if name in number_of:
            number = number_of[name]
            tied = at is not None and at > number  # a table that was looked up before, without a product
            entrance = first.setdefault(number, "" if tied else name)
            at = number
            cost.layers[at].own += flops
            if not entrance or not name.startswith(entrance):  # weight_ih_l0_reverse starts beside weight_ih_l0
                cost.layers[at].inner += flops
        elif at is None:
            cost.before += flops
        elif name:
            cost.layers[at].passing += flops
        else:
            cost.layers[at].following += flops
    return cost
