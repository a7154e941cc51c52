"""What each layer costs in a training step, and from that what a step would cost with any layers frozen."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from smartfrz_lightning.cost.flops import StepFlopCounter, StepFlops
from smartfrz_lightning.layers.layer import Layer


@dataclass
class LayerFlops:
    """FLOPs of one layer in the forward pass of one step.

    Attributes:
        layer: Its name.
        own: Products with its weights.
        following: Products without weights (attention) between it and the next layer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.cost.flops import StepFlopCounter
        >>> from smartfrz_lightning.cost.layer_flops import layer_flops
        >>> from smartfrz_lightning.layers.tracer import find_layers
        >>> net, x = nn.Sequential(nn.Linear(4, 4)), torch.rand(2, 3, 4)
        >>> with StepFlopCounter(net) as counter:
        ...     scores = net(x) @ x.mT
        >>> layer_flops(find_layers(net, x), counter)
        [LayerFlops(layer='0', own=192, following=144)]
    """

    layer: str
    own: float = 0
    following: float = 0


def layer_flops(layers: Sequence[Layer], counter: StepFlopCounter) -> list[LayerFlops]:
    """Share the products that a counter saw among the layers that they belong to, in the order of ``layers``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.cost.flops import StepFlopCounter
        >>> from smartfrz_lightning.cost.layer_flops import layer_flops
        >>> from smartfrz_lightning.layers.tracer import find_layers
        >>> net = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
        >>> layers = find_layers(net, torch.rand(1, 10))
        >>> with StepFlopCounter(net) as counter:
        ...     net(torch.rand(4, 10)).sum().backward()
        >>> [cost.own for cost in layer_flops(layers, counter)]
        [1600, 800]
    """
    number_of = {name: number for number, layer in enumerate(layers) for name in layer.parameters}
    costs = [LayerFlops(layer.name) for layer in layers]
    at = 0
    for used, flops in counter.products:
        owners = {number_of[name] for name in used if name in number_of}
        if owners:
            at = max(owners)
            costs[at].own += flops
        elif costs:
            costs[at].following += flops
    return costs


def flops_when_frozen(costs: Sequence[LayerFlops], full: StepFlops, frozen: Collection[str]) -> StepFlops:
    """What a step costs once these layers are frozen, for a network whose layers form one chain of dependence.

    A frozen layer has no weight gradient; activation gradients stop behind the first layer that trains. Branches that
    run beside each other (a two-tower network) are taken as if one followed the other.

    Args:
        costs: From :func:`layer_flops`, in forward order.
        full: What a step costs with everything training, as measured.
        frozen: Names of the layers that do not train.

    Example:
        >>> from smartfrz_lightning.cost.flops import StepFlops
        >>> from smartfrz_lightning.cost.layer_flops import LayerFlops, flops_when_frozen
        >>> costs = [LayerFlops("a", 10), LayerFlops("b", 20), LayerFlops("c", 30)]
        >>> full = StepFlops(forward=60, weight_gradient=60, activation_gradient=50)
        >>> flops_when_frozen(costs, full, {"a"})
        StepFlops(forward=60, weight_gradient=50, activation_gradient=30.0)
    """
    frozen = set(frozen)
    if not frozen:
        return full
    first = next((number for number, cost in enumerate(costs) if cost.layer not in frozen), len(costs))
    weight = full.weight_gradient - sum(cost.own for cost in costs if cost.layer in frozen)
    weightless = sum(cost.following for cost in costs)
    # What the backward pass of a weightless product costs (2 to 2.5 times its forward) follows from the measured whole.
    factor = (full.activation_gradient - sum(cost.own for cost in costs[1:])) / weightless if weightless else 0
    activation = sum(cost.own for cost in costs[first + 1 :]) + factor * sum(cost.following for cost in costs[first:])
    return StepFlops(full.forward, max(0, weight), min(full.activation_gradient, float(max(0, activation))))


def front_costs(costs: Sequence[LayerFlops], full: StepFlops, names: Sequence[str]) -> list[float]:
    """What a step costs with the first layer frozen, with the first two, and so on, relative to one that trains all.

    Args:
        costs: From :func:`layer_flops`, in forward order.
        full: What a step costs with everything training, as measured.
        names: Of the layers, in forward order.

    Example:
        >>> from smartfrz_lightning.cost.flops import StepFlops
        >>> from smartfrz_lightning.cost.layer_flops import LayerFlops, front_costs
        >>> front_costs([LayerFlops("a", 10), LayerFlops("b", 10)], StepFlops(20, 20, 10), ["a"])
        [0.6]
    """
    return [flops_when_frozen(costs, full, names[: count + 1]).total / full.total for count in range(len(names))]
