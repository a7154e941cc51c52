"""FLOPs of steps against what the formulas of the layers give, and against what PyTorch counts in a whole step."""

import pytest
import torch
import torchvision
from models import Classifier, Manual, mlp
from scripted import ScriptedFreeze
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import BertConfig, BertForSequenceClassification

from smartfrz_lightning.cost.forward import ForwardFlops
from smartfrz_lightning.cost.meter import CostMeter, batch_size
from smartfrz_lightning.cost.step_cost import step_cost
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.layers import find_layers


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


def measured(model, layers, call):
    counter = ForwardFlops(model)
    counter.start()
    call()
    counter.stop()
    return step_cost(layers, counter.parameters, counter.products)


@pytest.mark.parametrize("pattern", ["none", "front", "every second"])
def test_partly_frozen(pattern):
    model, x = torchvision.models.mobilenet_v2(), torch.rand(2, 3, 64, 64)
    layers = find_layers(model, x)
    by_layer = analytic(model, x)
    cost = measured(model, layers, lambda: model(x))
    order = [layer.name for layer in layers]
    alone = {name: cost.when_frozen({*order} - {name}).weight_gradient for name in order}
    assert alone == by_layer and cost.layers == order
    count = len(layers)
    numbers = {"none": [], "front": range(count // 2), "every second": range(0, count - 1, 2)}[pattern]
    frozen = {order[number] for number in numbers}
    first = next(name for name in order if name not in frozen)
    flops = cost.when_frozen(frozen)
    assert flops.forward == sum(by_layer.values())
    assert flops.weight_gradient == sum(own for layer, own in by_layer.items() if layer not in frozen)
    assert flops.activation_gradient == sum(by_layer[name] for name in order[order.index(first) + 1 :])


def small_transformer(kind):
    if kind == "vit":
        model = torchvision.models.VisionTransformer(32, 8, 3, 2, 24, 40, num_classes=7)
        return model, {"x": torch.rand(2, 3, 32, 32)}
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=40,
        attention_probs_dropout_prob=0.0,
        num_labels=7,
    )
    return BertForSequenceClassification(config), {"input_ids": torch.randint(50, (2, 11))}


@pytest.mark.parametrize("kind", ["vit", "bert"])
@pytest.mark.parametrize("front", [0, 3, 6, 11])
def test_prefixes_of_transformers_cost_what_a_whole_step_is_counted_to_cost(kind, front):
    model, inputs = small_transformer(kind)
    layers = find_layers(model, **inputs)
    cost = measured(model, layers, lambda: model(**inputs))
    freeze(model, layers[:front])
    aten = torch.ops.aten  # fused attention on a CPU, which PyTorch's table lacks

    def attention(q, k, v, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(q, k, v)

    def twice(grad, q, k, v, *args, out_shape=None, **kwargs):
        return 2 * sdpa_flop_count(q, k, v)

    fused = aten._scaled_dot_product_flash_attention_for_cpu
    table = {fused: attention, aten._scaled_dot_product_flash_attention_for_cpu_backward: twice}
    with FlopCounterMode(display=False, custom_mapping=table) as counter:
        out = model(**inputs)
        getattr(out, "logits", out).sum().backward()
    assert cost.when_frozen({layer.name for layer in layers[:front]}).total == counter.get_total_flops()


def test_what_never_trains_costs_no_weight_gradient():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    net[0].requires_grad_(False)
    net[2].requires_grad_(False)
    x = torch.rand(4, 8)
    cost = measured(net, find_layers(net, x), lambda: net(x))
    assert (cost.full.weight_gradient, cost.full.activation_gradient) == (512 + 128, 512 + 128)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_cost_what_their_products_cost(kind, gates):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(12, 32), nn.Linear(64, 3)
            self.recurrent = kind(32, 64, batch_first=True)

        def forward(self, x):
            return self.head(self.recurrent(self.first(x)[:, None].expand(-1, 7, -1))[0][:, -1])

    net, x = Recurrent(), torch.rand(8, 12)
    cost = measured(net, find_layers(net, x), lambda: net(x))
    through_time, head = 2 * 8 * 7 * gates * 64 * 64, 2 * 8 * 64 * 3
    assert cost.when_frozen({"first", "head"}).weight_gradient == 2 * 8 * 7 * gates * 64 * 32 + through_time
    steps = 7 if kind is nn.LSTM else 6  # the first state needs no gradient, where that can be told apart
    assert cost.when_frozen({"first"}).activation_gradient == through_time * steps / 7 + head


def test_compiled_models_are_measured_too():
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), torch.rand(4, 8)
    compiled = torch.compile(net, backend="eager")
    meter, layers = CostMeter(net), find_layers(net, x)
    meter.before_batch(x)
    with torch.compiler.set_stance("force_eager"):
        loss = compiled(x).sum()
    loss.backward()
    assert meter.after_batch(layers, True).full.forward == 4 * 2 * (64 + 16)


def test_manual_optimization_with_two_passes_a_step(make_trainer):
    def run(model):
        freezer = ScriptedFreeze({4: [0]})
        make_trainer(freezer, max_epochs=1).fit(model)
        return freezer.timeline

    once, twice = run(Classifier(mlp(norm=False))), run(Manual(mlp(norm=False), times=2))
    assert twice.full.total == 2 * once.full.total and twice.spent.total == 2 * once.spent.total
    assert once.saved > 0


def test_the_size_of_a_batch_is_that_of_all_its_tensors():
    from transformers import BatchEncoding

    short, long = ({"input_ids": torch.zeros(4, n, dtype=torch.long), "labels": torch.zeros(4)} for n in (5, 15))
    assert (batch_size(short), batch_size(BatchEncoding(long))) == (24, 64)
    assert batch_size([torch.zeros(3, 8, 8), torch.zeros(3, 16, 8)]) == 3 * 8 * 24  # a list of images
    assert batch_size("a user's own kind of batch") == 1
