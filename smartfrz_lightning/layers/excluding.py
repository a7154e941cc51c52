"""What always trains because the user says so."""

import difflib
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from smartfrz_lightning.layers.layer import Layer, matches


def pin(layers: Sequence[Layer], exclude: Sequence[str]) -> list[Layer]:
    """Layers, with what is excluded marked as such, and nothing else."""
    always_trains = []
    for layer in layers:
        out = any(matches(pattern, name) for pattern in exclude for name in (layer.name, *layer.parameters))
        if out and not layer.always_trains:
            layer = replace(layer, always_trains="excluded")
        elif not out and layer.always_trains == "excluded":
            layer = replace(layer, always_trains="")
        always_trains.append(layer)
    return always_trains


def check_patterns(patterns: Sequence[str], model: nn.Module) -> None:
    """Raise ``ValueError`` for a pattern that matches no module or parameter of a model."""
    names = [name for name, _ in [*model.named_modules(), *model.named_parameters()] if name]
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
            what = f"close names: {close}" if close else f"its names begin with {names[:5]}"
            raise ValueError(f"exclude={pattern!r} matches no module or parameter of {type(model).__name__}; {what}")
