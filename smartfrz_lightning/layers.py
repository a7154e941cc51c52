"""What a layer is: the unit that freezes."""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A module that owns weights and computes, with the normalisation and the light parameters that go with it.

    It holds qualified names only, never modules: strategies and plugins replace those.

    Attributes:
        name: Qualified name of the module, or of the parameter where a module owns several independent weights.
        parameters: Names of all its parameters that trained when the layers were found.
        weights: The parameters among them that carry the computation (matrices, kernels, tables).
        stateful: Names of its modules whose buffers move in training mode (BatchNorm, spectral norm).
        size: Number of parameter values.
        pinned: Why the layer always trains: ``"output"`` (it leads to the loss), ``"excluded"``, ``"unused"`` (it took
            no part in the forward pass); empty for a layer that may freeze.
    """

    name: str
    parameters: tuple[str, ...]
    weights: tuple[str, ...]
    stateful: tuple[str, ...]
    size: int
    pinned: str = ""


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names this module or parameter, or something that contains it."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def front(layers: Sequence[Layer], frozen: Iterable[str]) -> list[Layer]:
    """The layers before the first one that trains."""
    frozen = set(frozen)
    prefix = []
    for layer in layers:
        if layer.name not in frozen:
            break
        prefix.append(layer)
    return prefix
