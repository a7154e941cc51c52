"""How alike the layers of a training model are to those of a finished reference, on one fixed probe batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.private.pytorch import tensors_in, tree_map_only
from smartfrz_lightning.similarity.cka import gram_cka
from smartfrz_lightning.similarity.features import layer_grams


class ReferenceProbe:
    """Takes the inputs of the first training batch as a probe, then compares layers with the reference on them.

    Create it before that batch; ``meet_reference`` ends the waiting. Both models are run in eval mode, and the
    random numbers that they draw are not missing afterwards.

    Args:
        model: The model that trains.

    Raises:
        ValueError: On ``meet_reference``: no module was called that holds all trainable parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._call: tuple[nn.Module, tuple, dict] | None = None
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        self._hooks = [
            module.register_forward_pre_hook(self._take, with_kwargs=True)
            for module in model.modules()
            if trained <= {id(parameter) for parameter in module.parameters()}
        ]

    def _take(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._call is None:
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs))
            self._call = (module, args, kwargs)

    @property
    def network(self) -> str:
        """Class name of the module that the probe is given to."""
        return type(self._seen[0]).__name__

    @property
    def _seen(self) -> tuple[nn.Module, tuple, dict]:
        assert self._call is not None, "meet_reference comes first"
        return self._call

    def remove_hooks(self) -> None:
        """Stop waiting for a batch."""
        for hook in self._hooks:
            hook.remove()

    def meet_reference(self, state: dict[str, Tensor], layers: Sequence[Layer]) -> None:
        """Run the reference on the probe once; the model's own weights are put back."""
        self.remove_hooks()
        if self._call is None:
            raise ValueError(
                "no module was called that holds all trainable parameters, so there is no probe to compare layers on: "
                "call the model as a module in training_step, self(x) or self.model(x)"
            )
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        _copy(self.model, state)
        try:
            self._reference = dict(zip([layer.name for layer in layers], self._grams(layers), strict=True))
        finally:
            _copy(self.model, own)

    def cka(self, layers: Sequence[Layer]) -> list[float]:
        """CKA of each layer's output to that of the reference, now."""
        pairs = zip(layers, self._grams(layers), strict=True)
        return [float(gram_cka(gram, self._reference[layer.name])) for layer, gram in pairs]

    def _grams(self, layers: Sequence[Layer]) -> list[Tensor]:
        module, args, kwargs = self._seen
        examples = max(len(tensor) for tensor in tensors_in((args, kwargs)) if tensor.ndim)
        modes = {m: m.training for m in self.model.modules()}
        device = next(self.model.parameters()).device
        self.model.eval()
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                return layer_grams(self.model, layers, lambda: module(*args, **kwargs), examples)
        finally:
            for m, mode in modes.items():
                m.training = mode

    def state_dict(self) -> dict[str, Any]:
        """The probe's inputs and the reference's Gram matrices."""
        module, args, kwargs = self._seen
        name = next(name for name, m in self.model.named_modules() if m is module)
        return {"module": name, "args": args, "kwargs": kwargs, "reference": self._reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved probe."""
        self.remove_hooks()
        device = next(self.model.parameters()).device
        state = tree_map_only(Tensor, lambda tensor: tensor.to(device), state)
        self._call = (self.model.get_submodule(state["module"]), tuple(state["args"]), state["kwargs"])
        self._reference = state["reference"]


@torch.no_grad()
def _copy(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        tensor.copy_(state[name])
