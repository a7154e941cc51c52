"""StepCost: what a training step costs, with any layers frozen."""

import functools
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from smartfrz_lightning.cost.operands import Operand, Product
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
        gradients = self.weight_gradient + other.weight_gradient, self.activation_gradient + other.activation_gradient
        return StepFlops(self.forward + other.forward, *gradients)

    def times(self, steps: float) -> "StepFlops":
        """FLOPs of so many of these steps."""
        return StepFlops(steps * self.forward, steps * self.weight_gradient, steps * self.activation_gradient)


@dataclass
class StepCost:
    """What a training step costs, from the products of its forward pass.

    The gradient of an operand costs what the product costs, and is needed if the operand depends on a layer that
    trains: a weight gradient if it was made from parameters alone, else an activation gradient. What checkpointed
    blocks compute again is not counted.

    Attributes:
        layers: Names of the layers, in forward order.
        products: FLOPs, and of each operand the layers that it depends on, as bits (one more for inputs that need
            gradients), and whether it was made from parameters alone.
    """

    layers: list[str] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)

    @functools.cached_property
    def full(self) -> StepFlops:
        """A step in which everything trains."""
        return self.when_frozen(())

    def when_frozen(self, frozen: Collection[str]) -> StepFlops:
        """A step in which these layers are frozen."""
        frozen, step = set(frozen), StepFlops()
        trains = sum(1 << number for number, name in enumerate([*self.layers, ""]) if name not in frozen)
        for flops, operands in self.products:
            needed = [weight for bits, weight in operands if bits & trains]
            step.forward += flops
            step.weight_gradient += flops * sum(needed)
            step.activation_gradient += flops * (len(needed) - sum(needed))
        return step

    def relative(self, frozen: Collection[str]) -> float:
        """Cost of a step in which these layers are frozen, relative to one in which everything trains; 1 if unknown."""
        full = self.full.total
        return self.when_frozen(frozen).total / full if full else 1.0

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "StepCost":
        """What ``dataclasses.asdict`` gave."""
        products = [(flops, [tuple(one) for one in operands]) for flops, operands in state["products"]]
        return cls(state["layers"], products)  # JSON knows no tuples


def step_cost(layers: Sequence[Layer], parameters: Sequence[str], products: Sequence[Product]) -> StepCost:
    """The cost of a step, from products whose operands depend on parameters.

    Args:
        layers: In forward order.
        parameters: Names, in the order of the operands' bits.
        products: Those of a forward pass.
    """
    number_of = {name: number for number, layer in enumerate(layers) for name in layer.parameters}
    numbers = [number_of.get(name) for name in parameters]
    found: dict[tuple[Operand, ...], float] = defaultdict(float)

    @functools.cache
    def of_layers(bits: int) -> int:
        of = {number for at, number in enumerate(numbers) if bits >> at & 1 and number is not None}
        of |= {len(layers)} if bits >> len(parameters) else set()
        return sum(1 << number for number in of)

    for flops, operands in products:
        found[tuple((of_layers(bits), weight) for bits, weight in operands)] += flops
    return StepCost([layer.name for layer in layers], [(flops, list(operands)) for operands, flops in found.items()])
