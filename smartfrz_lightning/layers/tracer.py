"""Find the layers of any model by watching it run."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.layers.gathering import StepFacts, gather_layers
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.layers.tracing import ParameterTracer, is_product, parameters_reaching, tensors_in
from smartfrz_lightning.private.pytorch import WeakTensorKeyDictionary, in_backward

if TYPE_CHECKING:
    from typing_extensions import Self


class LayerTracer(ParameterTracer):
    """Watch one training step and tell the layers of the model in forward order.

    Args:
        model: The model, with the parameters to be ignored already at ``requires_grad=False``.
        exclude: Shell-style patterns (``backbone.stem.*``) of modules, layers or parameters that always train.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.layers.tracer import LayerTracer
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
        >>> with LayerTracer(net) as tracer:
        ...     loss = net(torch.rand(4, 3, 8, 8)).sum()
        >>> tracer.leads_to(loss)
        >>> [(layer.name, layer.stateful, layer.pinned) for layer in tracer.layers()]
        [('0', ('1',), ''), ('4', (), 'output')]
    """

    def __init__(self, model: nn.Module, exclude: Sequence[str] = ()) -> None:
        super().__init__(model)
        self._exclude = tuple(exclude)
        self._clock = 0
        self._facts = StepFacts()
        self._producer = WeakTensorKeyDictionary()
        self.saw_backward = False
        """Whether a backward pass ran."""
        self._buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}

    def __enter__(self) -> "Self":
        for name, module in self._model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                self._hooks.append(module.register_forward_pre_hook(self._ran_hook(name)))
        return super().__enter__()

    def _ran_hook(self, name: str) -> Callable:
        def hook(*_: Any) -> None:
            self._clock += 1
            self._facts.ran.setdefault(name, self._clock)

        return hook

    def on_operation(self, func: Any, inputs: list[Tensor], out: Any, sources: list[frozenset[str] | None]) -> None:
        if in_backward():
            self.saw_backward = True
            return
        product = is_product(func)
        if not product and None not in sources:
            return
        self._clock += 1
        used = frozenset().union(*(source for source in sources if source))
        for name in used:
            self._facts.first_use.setdefault(name, self._clock)
            self._facts.last_use[name] = self._clock
        activations = [tensor for tensor, source in zip(inputs, sources, strict=True) if source is None]
        if product and used:
            self._facts.in_product |= used
            for result in tensors_in(out):
                self._producer[result] = used
        elif len(activations) == 1:
            # Dropout, an activation function or a view between a convolution and its BatchNorm changes nothing.
            feeder = self._producer.get(activations[0])
            if feeder and used:
                for name in used:
                    self._facts.fed_by.setdefault(name, feeder)
            elif feeder:
                for result in tensors_in(out):
                    self._producer[result] = feeder

    def leads_to(self, *losses: Tensor) -> None:
        """Pin the last layer with a path to ``losses``; call it before their ``backward``."""
        reaching = parameters_reaching(losses)
        last_use = self._facts.last_use
        names = [name for key, name in self._name_of.items() if key in reaching and name in last_use]
        if names:
            self._facts.ends.add(max(names, key=last_use.__getitem__))

    def layers(self) -> list[Layer]:
        """The layers in forward order, those that took no part last.

        Raises:
            ValueError: The model has no trainable parameter.
        """
        self._facts.changed = {
            name.rpartition(".")[0]
            for name, buffer in self._model.named_buffers()
            if name in self._buffers and _moved(self._buffers[name], buffer)
        }
        return gather_layers(self._model, self._facts, self._exclude)


def find_layers(model: nn.Module, *inputs: Any, exclude: Sequence[str] = (), **kwargs: Any) -> list[Layer]:
    """Run a model once and tell its layers in forward order.

    Args:
        model: Any module. It is run in the mode that it is in, and its buffers are put back afterwards.
        inputs: What the model is called with.
        exclude: Patterns of what always trains, see :class:`LayerTracer`.
        kwargs: Keyword arguments for the call.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.layers.tracer import find_layers
        >>> net = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        >>> [layer.parameters for layer in find_layers(net, torch.tensor([1, 2]))]
        [('0.weight', '1.weight', '1.bias'), ('2.weight', '2.bias')]
    """
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    tracer = LayerTracer(model, exclude)
    with tracer:
        out = model(*inputs, **kwargs)
    tracer.leads_to(*tensors_in(_plain(out)))
    found = tracer.layers()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in before:  # a cache may be made in the first call
                buffer.copy_(before[name])
    return found


def _moved(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape or not before.is_floating_point():
        return before.shape != after.shape or not torch.equal(before, after)
    return not torch.equal(before.nan_to_num(), after.nan_to_num())  # NaN is what it was


def _plain(out: Any) -> Any:
    """Model outputs of transformers and others as a plain nest."""
    return dict(out) if hasattr(out, "items") else out
