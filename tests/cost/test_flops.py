"""Measured FLOPs against what the formulas of the layers give."""

import pytest
import torch
import torchvision
from models import Classifier, mlp
from scripted import ScriptedFreeze
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification

from smartfrz_lightning.cost.flops import StepFlopCounter
from smartfrz_lightning.cost.layer_flops import flops_when_frozen, layer_flops
from smartfrz_lightning.cost.memory import SavedActivations
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.layers.finder import find_layers


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


def transformer_flops(kind, batch, tokens, width, hidden, blocks):
    """Forward FLOPs by hand, in order: ``(layer, own, attention behind it, how many layers before share its input)``.

    -1 stands for a norm that belongs to the layer and lies before it.
    """
    square, mlp = 2 * batch * tokens * width**2, 2 * batch * tokens * width * hidden
    attention = 4 * batch * tokens**2 * width  # scores, and their product with the values
    rows = []
    for block in range(blocks):
        if kind == "vit":
            at = f"encoder.layers.encoder_layer_{block}"
            rows += [(f"{at}.self_attention", 3 * square, attention, -1)]
            rows += [(f"{at}.self_attention.out_proj", square, 0, 0)]
            rows += [(f"{at}.mlp.0", mlp, 0, 0), (f"{at}.mlp.3", mlp, 0, 0)]
        else:
            at = f"bert.encoder.layer.{block}"
            rows += [(f"{at}.attention.self.query", square, 0, 0), (f"{at}.attention.self.key", square, 0, 1)]
            rows += [(f"{at}.attention.self.value", square, attention, 2)]
            rows += [(f"{at}.attention.output.dense", square, 0, 0)]
            rows += [(f"{at}.intermediate.dense", mlp, 0, 0), (f"{at}.output.dense", mlp, 0, 0)]
    return rows


def small_transformer(kind):
    if kind == "vit":
        model = torchvision.models.VisionTransformer(32, 8, 3, 2, 24, 40, num_classes=7)
        rows = [("conv_proj", 2 * 2 * 16 * 24 * 3 * 64, 0, 0), *transformer_flops(kind, 2, 17, 24, 40, 3)]
        return model, {"x": torch.rand(2, 3, 32, 32)}, [*rows, ("heads.head", 2 * 2 * 24 * 7, 0, 0)]
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=40,
        attention_probs_dropout_prob=0.0,
        num_labels=7,
    )
    model = BertForSequenceClassification(config)
    embeddings = [(f"bert.embeddings.{kind}_embeddings", 0, 0, 0) for kind in ("word", "position")]
    rows = [*embeddings, *transformer_flops(kind, 2, 11, 24, 40, 3)]
    rows += [("bert.pooler.dense", 2 * 2 * 24 * 24, 0, 0), ("classifier", 2 * 2 * 24 * 7, 0, 0)]
    return model, {"input_ids": torch.randint(50, (2, 11))}, rows


def step(model, inputs):
    out = model(**inputs)
    getattr(out, "logits", out).sum().backward()


@pytest.mark.parametrize("kind", ["vit", "bert"])
@pytest.mark.parametrize("pattern", ["none", "front", "every second", "one block"])
def test_partly_frozen_transformer(kind, pattern):
    model, inputs, rows = small_transformer(kind)
    layers = find_layers(model, **inputs)
    names = [row[0] for row in rows]
    assert [layer.name for layer in layers] == names
    count = len(names)
    chosen = {"none": [], "front": range(count // 2), "every second": range(0, count - 1, 2), "one block": range(3, 7)}
    freeze(model, [layers[number] for number in chosen[pattern]])
    with StepFlopCounter(model) as counter:
        step(model, inputs)
    trains = [number not in chosen[pattern] for number in range(count)]
    activation = 0
    for number, (_, own, attention, shared) in enumerate(rows):
        if any(trains[: number - shared]):
            activation += own
        if attention and any(trains[: number + 1]):
            activation += 2.5 * attention  # the fused backward computes the scores once more
    forward = sum(own + attention for _, own, attention, _ in rows)
    weight = sum(own for (_, own, _, _), training in zip(rows, trains, strict=True) if training)
    assert counter.flops.forward == pytest.approx(forward, rel=1e-3)
    assert counter.flops.weight_gradient == pytest.approx(weight, rel=1e-3)
    assert counter.flops.activation_gradient == pytest.approx(activation, rel=1e-3)


@pytest.mark.parametrize("kind", ["vit", "bert"])
@pytest.mark.parametrize("front", [0, 3, 6, 11])
def test_what_a_step_would_cost_is_what_it_costs(kind, front):
    model, inputs, _ = small_transformer(kind)
    layers = find_layers(model, **inputs)
    with StepFlopCounter(model) as everything:
        step(model, inputs)
    costs = layer_flops(layers, everything)
    foreseen = flops_when_frozen(costs, everything.flops, {layer.name for layer in layers[:front]})
    freeze(model, layers[:front])
    with StepFlopCounter(model) as counter:
        step(model, inputs)
    # Query, key and value share one input: the chain that is assumed is off by at most those.
    assert foreseen.total == pytest.approx(counter.flops.total, rel=0.02)


def test_saved_activations_vanish_with_the_front():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    layers, x = find_layers(model, torch.rand(5, 8)), torch.rand(5, 8)
    saved = []
    for front in range(3):
        freeze(model, layers[:front])
        with SavedActivations(model) as activations:
            model(x).sum().backward()
        saved.append(activations.bytes)
    # Inputs of the linear layers (8, 16 and 32 wide) and the outputs of the ReLUs, which are the same tensors.
    assert saved == [4 * 5 * (8 + 16 + 32), 4 * 5 * (16 + 32), 4 * 5 * 32]


def test_saved_activations_are_counted_while_they_are_kept():
    model, x = nn.Linear(8, 4), torch.rand(5, 8)
    with SavedActivations(model) as one_after_the_other:
        for factor in (1, 2, 3):
            model(factor * x).sum().backward()
    with SavedActivations(model) as together:
        losses = [model(factor * x).sum() for factor in (1, 2, 3)]
        sum(losses).backward()
        model(x).sum().backward()
    with SavedActivations(model) as the_same_input:
        sum(model(x).sum() for _ in range(3)).backward()
    one = 4 * 5 * 8
    assert (one_after_the_other.bytes, together.bytes, the_same_input.bytes) == (one, 3 * one, one)


def test_blocks_that_run_again_in_the_backward_pass(make_trainer):
    class Checkpointed(Classifier):
        def forward(self, x):
            x = x.requires_grad_()  # reentrant checkpointing wants it
            first, rest = self.net[:4], self.net[4:]
            return checkpoint(rest, checkpoint(first, x, use_reentrant=True), use_reentrant=True)

    freezer = ScriptedFreeze({4: [0]})
    make_trainer(freezer, max_epochs=1).fit(Checkpointed(mlp(norm=False)))
    before, after = (state.saved_bytes for state in freezer.timeline.states)
    assert before >= after > 0


def test_manual_optimization_with_two_passes_a_step(make_trainer):
    class Twice(Classifier):
        def __init__(self):
            super().__init__(mlp(norm=False))
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for _ in range(2):
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

    def run(model):
        freezer = ScriptedFreeze({4: [0]})
        make_trainer(freezer, max_epochs=1).fit(model)
        return freezer.timeline.states

    once, twice = run(Classifier(mlp(norm=False))), run(Twice())
    assert len(once) == len(twice) == 2
    for one, two in zip(once, twice, strict=True):
        assert two.flops.total == 2 * one.flops.total
        assert two.saved_bytes == one.saved_bytes  # the first pass has let go before the second begins
