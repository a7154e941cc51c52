"""What a layer is: the unit that freezes."""

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn


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
        always_trains: Why the layer always trains: ``"output"`` (it leads to the loss), ``"excluded"``, ``"unused"``
            (it took no part in the forward pass), ``"thawed"`` (by the user); empty for a layer that may freeze.
    """

    name: str
    parameters: tuple[str, ...]
    weights: tuple[str, ...]
    stateful: tuple[str, ...]
    size: int
    always_trains: str = ""


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names this module or parameter, or something that contains it.

    Examples:
        >>> from smartfrz_lightning.layers.layer import matches
        >>> matches("blocks.0", "blocks.0.attn.qkv"), matches("*.attn", "blocks.0.attn.qkv")
        (True, True)
        >>> matches("attn", "blocks.0.attn.qkv"), matches("blocks.1", "blocks.10")
        (False, False)
    """
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def connected(layers: Sequence[Layer], frozen: Iterable[str], ready: Collection[str]) -> list[str]:
    """Those ready layers before which every layer is frozen or ready, or can never freeze: what lets the front grow.

    What is excluded, unused, or tied to the output does not stand in the way of those behind it.
    """
    frozen, chosen = set(frozen), []
    for layer in layers:
        if layer.name in ready:
            chosen.append(layer.name)
        elif layer.name not in frozen and not layer.always_trains:
            break
    return chosen


def mark_excluded(layers: Sequence[Layer], exclude: Sequence[str]) -> list[Layer]:
    """Layers, with what is excluded marked as such, and nothing else."""
    marked = []
    for layer in layers:
        out = any(matches(pattern, name) for pattern in exclude for name in (layer.name, *layer.parameters))
        if out and not layer.always_trains:
            layer = replace(layer, always_trains="excluded")
        elif not out and layer.always_trains == "excluded":
            layer = replace(layer, always_trains="")
        marked.append(layer)
    return marked


def check_patterns(patterns: Sequence[str], model: nn.Module) -> None:
    """Raise ``ValueError`` for a pattern that matches no module or parameter of a model."""
    names = [name for name, _ in [*model.named_modules(), *model.named_parameters()] if name]
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
            what = f"close names: {close}" if close else f"its names begin with {names[:5]}"
            raise ValueError(f"exclude={pattern!r} matches no module or parameter of {type(model).__name__}; {what}")
