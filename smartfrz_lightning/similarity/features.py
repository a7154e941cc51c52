"""The output of every layer for a probe batch, as Gram matrices ready for CKA."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.layers.tracing import ParameterTracer, is_product, tensors_in
from smartfrz_lightning.similarity.cka import centered_gram


@torch.no_grad()
def layer_grams(model: nn.Module, layers: Sequence[Layer], run: Callable[[], Any], examples: int) -> list[Tensor]:
    """Centred Gram matrices of the feature maps of all layers.

    The feature map is what the layer's module returns; for a weight that is used without its module being called
    (functional calls, projections inside an attention module) it is the product that the weight goes into.

    Args:
        model: The model.
        layers: The layers to watch.
        run: Runs the model on the probe.
        examples: Examples in the probe.

    Returns:
        One ``[examples, examples]`` tensor a layer, in the order of ``layers``.

    Raises:
        ValueError: A layer gave no feature map.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.similarity.cka import centered_gram
        >>> from smartfrz_lightning.similarity.features import layer_grams
        >>> from smartfrz_lightning.layers.tracer import find_layers
        >>> net, probe = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(5, 6)
        >>> grams = layer_grams(net, find_layers(net, probe), lambda: net(probe), examples=5)
        >>> len(grams), torch.allclose(grams[0], centered_gram(net[0](probe)))
        (2, True)
    """
    modules = dict(model.named_modules())
    of_module: dict[str, Tensor] = {}
    hooks = []
    for layer in layers:
        for name in (layer.name, layer.name.rpartition(".")[0]):
            if name in modules and name not in of_module:
                of_module[name] = torch.empty(0)
                hooks.append(modules[name].register_forward_hook(_keep(of_module, name)))
    products = _Products(model, layers)
    try:
        with products:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    grams = []
    for layer in layers:
        own, product = of_module.get(layer.name), products.found.get(layer.name)
        around = of_module.get(layer.name.rpartition(".")[0])
        candidates = [own, product if product is None or len(product) == examples else None, around, product]
        usable = [c for c in candidates if c is not None and c.numel() and c.numel() % examples == 0]
        if not usable:
            raise ValueError(f"layer {layer.name!r} gave no feature map for a probe of {examples} examples: exclude it")
        grams.append(centered_gram(usable[0].reshape(examples, -1)))
    return grams


def _keep(found: dict[str, Tensor], name: str) -> Callable:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        tensors = tensors_in(dict(out) if hasattr(out, "items") else out)
        if tensors:
            found[name] = tensors[0].detach()

    return hook


class _Products(ParameterTracer):
    """The last product that each layer's weights went into."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        super().__init__(model)
        self.found: dict[str, Tensor] = {}
        self._layer_of = {weight: layer.name for layer in layers for weight in layer.weights}

    def on_operation(self, func: Any, inputs: list[Tensor], out: Any, sources: list[frozenset[str] | None]) -> None:
        if is_product(func) and None in sources:
            for name in sorted(frozenset().union(*(source for source in sources if source))):
                if name in self._layer_of:
                    self.found[self._layer_of[name]] = tensors_in(out)[0].detach()
