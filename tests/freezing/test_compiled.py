"""torch.compile: the frozen backward is gone, and nothing falls back to eager."""

import pytest
import torch
from functorch.compile import make_boxed_func
from models import Classifier
from scripted import ScriptedFreeze
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from smartfrz_lightning.freezing.compiled import forget_graphs
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.layers.finder import find_layers


class Spy:
    """A backend that runs graphs as they are, and sees the products of each backward graph and how often they run."""

    def __init__(self):
        torch.compiler.reset()
        self.backward_products, self.runs = [], 0
        self.backend = aot_autograd(fw_compiler=self.forward, bw_compiler=self.backward)

    def forward(self, graph, inputs):
        def run(*arguments):
            self.runs += 1
            return graph(*arguments)

        return make_boxed_func(run)

    def backward(self, graph, inputs):
        products = [node for node in graph.graph.nodes if "mm" in str(node.target)]
        self.backward_products.append(len(products))
        return make_boxed_func(graph.forward)


class Block(nn.Module):
    """A class of a user's: older versions of PyTorch leave ``nn.Linear`` and its like as they are."""

    def __init__(self, outputs):
        super().__init__()
        self.linear = nn.Linear(12, outputs)

    def forward(self, x):
        return self.linear(x).relu()


class Chain(nn.Sequential):
    def forward(self, x):
        for block in self:
            x = block(x)
        return x


def chain(depth):
    torch.manual_seed(0)
    return Chain(*(Block(12) for _ in range(depth)), Block(3))


def test_the_frozen_backward_is_gone_whole_model():
    net, spy = chain(3), Spy()
    layers = find_layers(net, torch.randn(4, 12))
    net.compile(backend=spy.backend)
    for front in range(4):
        freeze(net, layers[:front])
        forget_graphs()
        net(torch.randn(4, 12)).sum().backward()
    # weight gradients of the layers that train, activation gradients between them
    assert spy.backward_products == [4 + 3, 3 + 2, 2 + 1, 1]


def test_the_frozen_backward_is_gone_blocks():
    net, spy = chain(3), Spy()
    layers = find_layers(net, torch.randn(4, 12))
    for block in net:
        block.compile(backend=spy.backend)
    backward = []
    for front in range(4):
        freeze(net, layers[:front])
        spy.backward_products.clear()
        torch.compiler.reset()
        net(torch.randn(4, 12)).sum().backward()
        backward.append(sorted(spy.backward_products))
    # one function serves the equal blocks: traced with and without a gradient for its input; the head for itself
    assert backward == [[1, 2, 2], [1, 2, 2], [1, 2], [1]]


@pytest.mark.parametrize("how", ["whole", "blocks", pytest.param("module", marks=pytest.mark.slow)])
def test_nothing_falls_back_to_eager(make_trainer, how):
    depth = 10
    net, spy = chain(depth), Spy()
    plain = Classifier(chain(depth))
    module = Classifier(net)
    if how == "whole":
        net.compile(backend=spy.backend)
    elif how == "blocks":
        for block in net:
            block.compile(backend=spy.backend)
    runs = []

    class Runs(ScriptedFreeze):
        def on_train_batch_start(self, *arguments):
            spy.runs = 0
            super().on_train_batch_start(*arguments)

        def on_train_batch_end(self, *arguments):
            runs.append(spy.runs)
            super().on_train_batch_end(*arguments)

    script = {2 * (number + 1): [number] for number in range(depth)}
    compiled = torch.compile(module, backend=spy.backend) if how == "module" else module
    freezer, other = Runs(script), ScriptedFreeze(script)
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):  # the defaults
        make_trainer(freezer, max_epochs=4, limit_val_batches=0).fit(compiled)
    make_trainer(other, max_epochs=4, limit_val_batches=0).fit(plain)
    assert freezer.frozen == other.frozen and len(freezer.frozen) == depth
    assert all((count > 0) != (step == 0) for step, count in enumerate(runs))  # the first batch is measured, eagerly
    assert module.losses == pytest.approx(plain.losses, rel=1e-4)
    graphs = {"whole": 12, "blocks": 7, "module": 30}[how]  # a pattern is compiled once, in 32 steps
    assert len(spy.backward_products) <= graphs
