"""How alike the layers of a training model are to those of a finished reference, on a fixed probe."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.private.pytorch import tensors_in, tree_map_only
from smartfrz_lightning.similarity.cka import LEAST_EXAMPLES, gram_cka, unbiased_gram


class ReferenceProbe:
    """Takes the inputs of the batches that come as a probe, then compares layers with the reference on them.

    Create it before these batches; ``meet_reference`` ends the waiting. Both models are run in eval mode, and the
    random numbers that they draw are not missing afterwards. CKA is the unbiased estimate, over all batches, of what
    the layers' modules return; for a weight that is used without its module being called (functional calls, projections
    inside an attention module) of what the nearest module around it returns.

    Args:
        model: The model that trains.
        examples: Take batches until there are as many examples; the first batch alone by default.

    Attributes:
        examples: How many there are.
        reference: Gram matrices of the reference's layers, once it has been met.
    """

    def __init__(self, model: nn.Module, examples: int = 1) -> None:
        self.model, self._wanted = model, examples
        self.examples = 0
        self._too_few = 0  # examples of a batch that had not enough
        self._calls: list[tuple[nn.Module, tuple, dict]] = []
        self.reference: dict[str, Tensor] = {}
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        self._hooks = [
            module.register_forward_pre_hook(self._take, with_kwargs=True)
            for module in model.modules()
            if trained <= {id(parameter) for parameter in module.parameters()}
        ]

    def _take(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        count = _examples(args, kwargs)
        inside = bool(self._calls) and module is not self._calls[0][0]
        if count < LEAST_EXAMPLES:
            self._too_few = count
        elif self.examples < self._wanted and not inside:
            with torch.inference_mode(False):  # what a network may write into
                args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs))
            self._calls.append((module, args, kwargs))
            self.examples += count

    @property
    def network(self) -> str:
        """Class name of the module that the probe is given to."""
        return type(self._calls[0][0]).__name__

    def remove_hooks(self) -> None:
        """Stop waiting for a batch."""
        for hook in self._hooks:
            hook.remove()

    def meet_reference(self, state: dict[str, Tensor], layers: Sequence[Layer]) -> None:
        """Run the reference on the probe once; the model's own weights are put back."""
        self.remove_hooks()
        if self._too_few and not self._calls:
            raise ValueError(
                f"the batch has {self._too_few} examples, and CKA needs at least {LEAST_EXAMPLES}: take larger ones"
            )
        if not self._calls:
            raise ValueError(
                "no module was called that holds all trainable parameters, so there is no probe to compare layers on: "
                "call the model as a module in training_step, self(x) or self.model(x)"
            )
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(state)
        try:
            self.reference = dict(zip([layer.name for layer in layers], self._grams(layers), strict=True))
        finally:
            self.model.load_state_dict(own)

    def cka(self, layers: Sequence[Layer]) -> list[float]:
        """CKA of each layer's output to that of the reference, now."""
        pairs = zip(layers, self._grams(layers), strict=True)
        return [float(gram_cka(gram, self.reference[layer.name])) for layer, gram in pairs]

    @torch.no_grad()
    def _grams(self, layers: Sequence[Layer]) -> list[Tensor]:
        found: dict[str, Tensor] = {}
        hooks = [module.register_forward_hook(_keep(found, name)) for name, module in self.model.named_modules()]
        modes = {m: m.training for m in self.model.modules()}
        device = next(self.model.parameters()).device
        self.model.eval()
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                batches = []
                for module, args, kwargs in self._calls:
                    found.clear()
                    module(*args, **kwargs)
                    examples = _examples(args, kwargs)
                    maps = [_feature_map(found, layer, examples) for layer in layers]
                    batches.append([unbiased_gram(one).flatten() for one in maps])
            return [torch.cat(grams) for grams in zip(*batches, strict=True)]
        finally:
            for hook in hooks:
                hook.remove()
            for m, mode in modes.items():
                m.training = mode

    def state_dict(self) -> dict[str, Any]:
        """The probe's inputs and the reference's Gram matrices."""
        names = {id(module): name for name, module in self.model.named_modules()}
        calls = [(names[id(module)], args, kwargs) for module, args, kwargs in self._calls]
        return {"calls": calls, "reference": self.reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved probe."""
        self.remove_hooks()
        self._calls = [(self.model.get_submodule(name), tuple(args), kwargs) for name, args, kwargs in state["calls"]]
        self.reference = state["reference"]


def _examples(args: tuple, kwargs: dict) -> int:
    """Rows of what a module was called with."""
    return max((len(tensor) for tensor in tensors_in((args, kwargs)) if tensor.ndim), default=0)


def _feature_map(found: dict[str, Tensor], layer: Layer, examples: int) -> Tensor:
    parts = layer.name.split(".")
    for end in range(len(parts), -1, -1):
        out = found.get(".".join(parts[:end]))
        if out is not None and out.numel() and out.numel() % examples == 0:
            return out.reshape(examples, -1)
    raise ValueError(f"layer {layer.name!r} gave no feature map for a probe of {examples} examples: exclude it")


def _keep(found: dict[str, Tensor], name: str) -> Callable:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        if tensors := tensors_in(dict(out) if hasattr(out, "items") else out):
            found[name] = tensors[0].detach()

    return hook
