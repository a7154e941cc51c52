"""LayerFinder: finds the layers of a model in its first training batch, whatever loop trains it."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from smartfrz_lightning.layers.finder import LayerWatch
from smartfrz_lightning.layers.layer import Layer, matches

_LOOKS = 50
"""Batches that are watched at most for a layer that took no part in the first."""


class LayerFinder:
    """Watch training batches until one shows the layers, and again when a layer turns up that took no part in it.

    Args:
        model: The model.
        exclude: Patterns of what always trains.

    Attributes:
        layers: The layers in forward order; empty until they are found.
        unused: Parameters of the layers that took no part in what was watched.
    """

    def __init__(self, model: nn.Module, exclude: Sequence[str] = (), layers: Sequence[Layer] = ()) -> None:
        self._model = model
        self._exclude = tuple(exclude)
        self._watch: LayerWatch | None = None
        self._saw_loss = False
        self._looks_left = _LOOKS
        self.watch_again = False
        """Whether the next batch is to be watched although layers are known."""
        self.layers = list(layers)

    @property
    def layers(self) -> list[Layer]:
        return self._layers

    @layers.setter
    def layers(self, layers: list[Layer]) -> None:
        self._layers = layers
        unused = [name for layer in layers if layer.always_trains == "unused" for name in layer.parameters]
        self.unused = [self._model.get_parameter(name) for name in unused]

    @property
    def watching(self) -> bool:
        """Whether the present batch is watched."""
        return self._watch is not None

    def before_batch(self) -> None:
        """Watch this batch, if layers are to be found in it."""
        self.stop()
        self._watch = None
        if self.layers and not self.watch_again:
            return
        self._saw_loss = False
        self._watch = LayerWatch(self._model, self._exclude)

    def before_backward(self, *losses: Tensor) -> None:
        """These are about to be differentiated: what leads to one of them with no layer behind it is a head."""
        if self._watch is not None:
            self._saw_loss = True
            self._watch.leads_to(*losses)

    def stop(self) -> None:
        """Watch no more; may be called at any time, and more than once."""
        if self._watch is not None:
            self._watch.stop()

    def find(self, agree: Callable[[Any], Any] = lambda value: value) -> bool:
        """Whether layers are found in what was watched of this batch. Nothing more of it is watched.

        Args:
            agree: Gives every process the value of the first.
        """
        self.stop()
        watch, self._watch = self._watch, None
        if watch is None or not (self._saw_loss or any(p.grad is not None for p in self._model.parameters())):
            return False  # a skipped step does not show what leads to the loss
        found = agree(watch.layers())
        merged = merge_layers(self.layers, found) if self.layers else found
        if len(self.unused) and merged == self.layers and self._looks_left:
            self._looks_left -= 1  # what turned up is not in every batch: wait for one that has it
            return False
        self.layers, self.watch_again, self._looks_left = merged, False, _LOOKS
        return True

    def unused_layer_trains(self) -> bool:
        """Whether a layer that took no part in the watched batch has a gradient now; the watched batch was not all."""
        return any(_moves(parameter.grad) for parameter in self.unused)


def _moves(gradient: Tensor | None) -> bool:
    if gradient is None:
        return False
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return bool(local.any())  # DDP gives zeros to what took no part


def merge_layers(known: Sequence[Layer], seen: Sequence[Layer]) -> list[Layer]:
    """Layers that one batch showed and another did not, in one forward order.

    What both batches used keeps its order; what only the later one used comes before the next layer that both know. A
    layer stays as it was known, except for ``"unused"``.
    """
    merged = [layer for layer in known if layer.always_trains != "unused"]
    new = [layer for layer in seen if layer.always_trains != "unused"]
    names = {layer.name for layer in merged}
    parts = {name for layer in merged for name in layer.parameters}
    for number, layer in enumerate(new):
        if layer.name in names or parts & set(layer.parameters):
            continue  # known, or gathered otherwise in this batch
        after = next((later.name for later in new[number + 1 :] if later.name in names), None)
        at = next((place for place, other in enumerate(merged) if other.name == after), len(merged))
        merged.insert(at, layer)
        names.add(layer.name)
    rest = [layer for layer in known if layer.always_trains == "unused" and layer.name not in names]
    return [*merged, *rest]


def pin(layers: Sequence[Layer], exclude: Sequence[str]) -> list[Layer]:
    """Layers that were found earlier, with what is excluded now."""
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
