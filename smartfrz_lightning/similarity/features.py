"""The output of every layer for a probe batch, as Gram matrices ready for unbiased CKA."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.private.pytorch import tensors_in
from smartfrz_lightning.similarity.cka import unbiased_gram


@torch.no_grad()
def layer_grams(model: nn.Module, layers: Sequence[Layer], run: Callable[[], Any], examples: int) -> list[Tensor]:
    """Unbiased Gram matrices of the feature maps of all layers.

    The feature map is what the layer's module returns; for a weight that is used without its module being called
    (functional calls, projections inside an attention module) what the nearest module around it returns.

    Args:
        model: The model.
        layers: The layers to watch.
        run: Runs the model on the probe.
        examples: Examples in the probe.

    Returns:
        One ``[examples, examples]`` tensor a layer, in the order of ``layers``.

    Raises:
        ValueError: A layer gave no feature map.
    """
    found: dict[str, Tensor] = {}
    hooks = [module.register_forward_hook(_keep(found, name)) for name, module in model.named_modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [unbiased_gram(_feature_map(found, layer, examples).reshape(examples, -1)) for layer in layers]


def _feature_map(found: dict[str, Tensor], layer: Layer, examples: int) -> Tensor:
    parts = layer.name.split(".")
    for end in range(len(parts), -1, -1):
        out = found.get(".".join(parts[:end]))
        if out is not None and out.numel() and out.numel() % examples == 0:
            return out
    raise ValueError(f"layer {layer.name!r} gave no feature map for a probe of {examples} examples: exclude it")


def _keep(found: dict[str, Tensor], name: str) -> Callable:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        tensors = tensors_in(dict(out) if hasattr(out, "items") else out)
        if tensors:
            found[name] = tensors[0].detach()

    return hook
