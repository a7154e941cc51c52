"""Layers of real models, in forward order, every trainable parameter in exactly one."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from smartfrz_lightning.layers.finder import find_layers

BERT = BertConfig(vocab_size=2000, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
IDS = torch.randint(0, 2000, (2, 8), generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

MODELS = {
    "resnet50": (torchvision.models.resnet50, (IMAGES,), 54, "conv1", "fc"),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, (IMAGES,), 53, "features.0.0", "classifier.1"),
    "vgg11_bn": (torchvision.models.vgg11_bn, (IMAGES,), 11, "features.0", "classifier.6"),
    "vit_b_16": (lambda: torchvision.models.vit_b_16(image_size=64), (IMAGES,), 50, "conv_proj", "heads.head"),
    "deit_tiny": (
        lambda: timm.create_model("deit_tiny_patch16_224", img_size=64),
        (IMAGES,),
        50,
        "patch_embed.proj",
        "head",
    ),
    "bert": (lambda: BertForSequenceClassification(BERT), (IDS,), 16, "bert.embeddings.word_embeddings", "classifier"),
}


@pytest.fixture(scope="module", params=MODELS)
def model_and_layers(request):
    build, inputs, count, first, last = MODELS[request.param]
    torch.manual_seed(0)
    model = build()
    layers = find_layers(model, *inputs)
    assert len(layers) == count
    assert (layers[0].name, layers[-1].name) == (first, last)
    return model, inputs, layers


def test_every_trainable_parameter_is_in_exactly_one_layer(model_and_layers):
    model, _, layers = model_and_layers
    names = [name for layer in layers for name in layer.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_the_order_is_that_of_running(model_and_layers):
    model, inputs, layers = model_and_layers
    modules, ran = dict(model.named_modules()), []
    hooks = [
        modules[layer.name].register_forward_pre_hook(lambda *_, name=layer.name: ran.append(name))
        for layer in layers
        if layer.name in modules
    ]
    model(*inputs)
    for hook in hooks:
        hook.remove()
    assert ran == [layer.name for layer in layers if layer.name in set(ran)]


def test_only_the_output_always_trains(model_and_layers):
    layers = model_and_layers[2]
    assert [layer.always_trains for layer in layers] == [""] * (len(layers) - 1) + ["output"]


def test_batchnorm_goes_with_the_convolution_that_feeds_it():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn_b, self.bn_a = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return self.head((self.bn_a(a) + self.bn_b(b)).mean((2, 3)))

    a, b, head = find_layers(Branches(), IMAGES)
    assert (a.name, a.stateful) == ("a", ("bn_a",))
    assert (b.name, b.stateful) == ("b", ("bn_b",))
    assert "bn_b.weight" in b.parameters and head.always_trains == "output"


def test_batchnorm_without_parameters_goes_with_the_layer_before_it():
    convolutions = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1)
    net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert [layer.stateful for layer in find_layers(net, IMAGES)] == [("1",), (), ()]


def test_functional_calls_and_bare_parameters():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.second = nn.Parameter(torch.rand(3, 8))
            self.first = nn.Parameter(torch.rand(8, 5))
            self.bias, self.scale = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.ones(1))

        def forward(self, x):
            return nn.functional.linear(torch.relu(x @ self.first.T + self.bias) * self.scale, self.second)

    first, second = find_layers(Functional(), torch.rand(2, 5))
    assert first.name == "first" and set(first.parameters) == {"first", "bias", "scale"}
    assert second.parameters == ("second",)


def test_tied_weights_are_one_layer_that_trains_with_the_output():
    layers = find_layers(BertForMaskedLM(BERT), IDS)
    assert layers[0].name == "bert.embeddings.word_embeddings" and layers[0].always_trains == "output"
    assert "cls.predictions.bias" in layers[0].parameters


def test_unused_repeated_and_checkpointed_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.twice, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = torch.utils.checkpoint.checkpoint(self.twice, x, use_reentrant=False)
            return self.head(self.twice(x))

    layers = find_layers(Net(), torch.rand(2, 4))
    assert [(layer.name, layer.always_trains) for layer in layers] == [
        ("twice", ""),
        ("head", "output"),
        ("unused", "unused"),
    ]


def test_a_module_under_two_names_is_one_layer():
    shared = nn.Linear(8, 8)
    net = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 2))
    assert [layer.name for layer in find_layers(net, torch.rand(1, 8))] == ["0", "3"]


def test_layers_frozen_by_the_user_are_left_alone():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    names = {name for layer in find_layers(net, torch.rand(3, 4)) for name in layer.parameters}
    assert names == {"1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias"}


def test_exclude():
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    layers = find_layers(net, torch.rand(1, 4), exclude=["1"])
    assert [layer.always_trains for layer in layers] == ["", "excluded", "", "output"]


def test_finding_layers_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    net(IMAGES)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    find_layers(net, IMAGES)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def heads(net, *inputs):
    return {layer.name for layer in find_layers(net, *inputs) if layer.always_trains == "output"}


def test_every_head_counts():
    class Heads(nn.Module):
        """A class and a box from one trunk, and a temperature, a bias and a penalty on the way to the loss."""

        def __init__(self):
            super().__init__()
            self.trunk, self.label, self.box = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)
            self.temperature, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            x = self.trunk(x).relu()
            penalty = sum(parameter.square().sum() for parameter in self.parameters())
            return (self.label(x) * self.temperature.exp() + self.bias).sum() + self.box(x).sum() + 0.1 * penalty

    assert heads(Heads(), torch.rand(2, 4)) == {"label", "box"}


def test_learned_weights_of_losses_hide_no_head():
    class Tasks(nn.Module):
        """As in Kendall et al. 2018."""

        def __init__(self):
            super().__init__()
            self.trunk, self.label, self.box = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)
            self.log_vars = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            x = self.trunk(x).relu()
            losses = torch.stack([self.label(x).square().mean(), self.box(x).square().mean()])
            each = sum(torch.exp(-self.log_vars[task]) * losses[task] for task in range(2))
            return each + self.log_vars.sum()

    assert heads(Tasks(), torch.rand(2, 4)) == {"label", "box"}


def test_both_towers_of_a_contrastive_loss_have_a_head():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x, y):
            return self.scale.exp() * self.image(x) @ self.text(y).T

    assert heads(Towers(), torch.rand(3, 4), torch.rand(3, 4)) == {"image.2", "text.2"}


def test_auxiliary_classifiers_are_heads_and_residual_blocks_are_not():
    net = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    assert heads(net, torch.rand(2, 3, 64, 64)) == {"aux1.fc2", "aux2.fc2", "fc"}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3)
    assert heads(encoder, torch.rand(2, 4, 16)) == {"layers.2.linear2"}
