"""Measured FLOPs against what the formulas of the layers give."""

import pytest
import torch
import torchvision
from torch import nn

from smartfrz_lightning.cost import StepFlopCounter
from smartfrz_lightning.freezing import freeze
from smartfrz_lightning.layer_tracer import find_layers


def analytic(model, x):
    """Forward FLOPs of every convolution and linear layer, in order of running."""
    flops = {}

    def hook(name):
        def count(module, args, out):
            weight = module.weight
            per_output = weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_features
            flops[name] = 2 * out.numel() * per_output

        return count

    hooks = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    model(x)
    for handle in hooks:
        handle.remove()
    return flops


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("pattern", ["none", "front", "every second"])
def test_partly_frozen(name, pattern):
    model, x = getattr(torchvision.models, name)(), torch.rand(2, 3, 64, 64)
    layers = find_layers(model, x)
    by_layer = analytic(model, x)
    count = len(layers)
    numbers = {"none": [], "front": range(count // 2), "every second": range(0, count - 1, 2)}[pattern]
    freeze(model, [layers[number] for number in numbers])
    with StepFlopCounter(model) as counter:
        model(x).sum().backward()
    frozen = {layers[number].name for number in numbers}
    first = next(layer.name for layer in layers if layer.name not in frozen)
    order = [layer.name for layer in layers]
    weight = sum(flops for layer, flops in by_layer.items() if layer not in frozen)
    # The input of the first layer that trains needs no gradient; neither does that of a downsampling branch beside it.
    needs = {layer for layer in order if order.index(layer) > order.index(first)}
    if name == "resnet18" and first.endswith("conv1") and first != "conv1":
        needs -= {first.replace("conv1", "downsample.0")}
    activation = sum(flops for layer, flops in by_layer.items() if layer in needs)
    assert counter.flops.forward == sum(by_layer.values())
    assert counter.flops.weight_gradient == weight
    assert counter.flops.activation_gradient == pytest.approx(activation, rel=1e-3)


def test_attention_is_activation_gradient_alone():
    model = torchvision.models.vit_b_16(image_size=32)
    with StepFlopCounter(model) as counter:
        model(torch.rand(1, 3, 32, 32)).sum().backward()
    flops = counter.flops
    assert 0 < flops.weight_gradient < flops.forward
    assert flops.activation_gradient > flops.forward - flops.weight_gradient
