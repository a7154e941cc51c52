"""Find the layers of a model in a training step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.layers.gathering import gather_layers
from smartfrz_lightning.layers.graph import StepUse
from smartfrz_lightning.layers.layer import Layer, mark_excluded
from smartfrz_lightning.layers.put_back import put_back
from smartfrz_lightning.private.pytorch import sequence_number, tensors_in


class LayerWatch:
    """Watch one training step and tell the layers of the model in forward order.

    Forward hooks say when modules run; the autograd graph of the loss says which parameters are used where, and which
    layers lead to the loss with no other behind them: every one of these is a head.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._training = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._use = StepUse()
        self._buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self._hooks = [
            module.register_forward_pre_hook(self._ran_hook(name))
            for name, module in model.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)  # takes no hooks
            and any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        ]

    def _ran_hook(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            self._use.ran.setdefault(name, sequence_number())
            for own, parameter in module.named_parameters(prefix=name, recurse=False):
                self._names.setdefault(id(parameter), own)  # FSDP2 puts gathered weights in place of its own

        return hook

    @property
    def toggled(self) -> bool:
        """Whether something is kept from training for now, as ``toggle_optimizer`` does in turn."""
        return not all(parameter.requires_grad for parameter in self._training)

    def leads_to(self, *losses: Tensor) -> None:
        """These are the losses; call it before their ``backward``."""
        self._use.read(losses, self._names)

    def stop(self) -> None:
        """Watch the forward pass no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def layers(self) -> list[Layer]:
        """The layers in forward order, those that took no part last."""
        self._use.changed = {
            name.rpartition(".")[0]
            for name, buffer in self._model.named_buffers()
            if name in self._buffers and _moved(self._buffers[name], buffer)
        }
        return gather_layers(self._model, self._use)


def find_layers(model: nn.Module, *inputs: Any, exclude: Sequence[str] = (), **kwargs: Any) -> list[Layer]:
    """Run a model once and tell its layers in forward order.

    Args:
        model: Any module. It is run in the mode that it is in, and its buffers are put back afterwards.
        inputs: What the model is called with.
        exclude: Shell-style patterns (``backbone.stem.*``) of modules, layers or parameters that always train.
        kwargs: Keyword arguments for the call.

    Raises:
        ValueError: The model has no trainable parameter, or blocks with reentrant checkpoints.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.layers import find_layers
        >>> net = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        >>> [layer.parameters for layer in find_layers(net, torch.tensor([1, 2]))]
        [('0.weight', '1.weight', '1.bias'), ('2.weight', '2.bias')]
    """
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    watch = LayerWatch(model)
    try:
        with torch.enable_grad():
            out = model(*inputs, **kwargs)
        watch.leads_to(*tensors_in(dict(out) if hasattr(out, "items") else out))  # outputs of transformers
        return mark_excluded(watch.layers(), exclude)
    finally:
        watch.stop()
        for name, buffer in model.named_buffers():
            if name in before:  # a cache may be made in the first call
                put_back(buffer, before[name])


def _moved(before: Tensor, after: Tensor) -> bool:
    if before.layout is not torch.strided:  # an adjacency matrix
        return False
    if before.shape != after.shape or not before.is_floating_point():
        return before.shape != after.shape or not torch.equal(before, after)
    return not torch.equal(before.nan_to_num(), after.nan_to_num())  # NaN is what it was
