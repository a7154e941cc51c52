"""WeightAverages: running averages of weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from smartfrz_lightning.layers.layer import Layer


class WeightAverages:
    """Exponentially weighted averages of the parameters of layers (after Izmailov et al. 2018, "Averaging Weights Leads
    to Wider Optima and Better Generalization").

    Args:
        tensors: Averages to go on with.

    Attributes:
        tensors: The averages, by name of the parameter; of sharded parameters none are taken.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in (tensors or {}).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, layers: Sequence[Layer], decay: float) -> None:
        """Take the present weights of these layers in; what was kept of others is dropped."""
        weights = {name: model.get_parameter(name) for layer in layers for name in layer.parameters}
        weights = {name: weight for name, weight in weights.items() if not isinstance(weight, DTensor)}
        kept = {
            name: self.tensors[name].to(weight.device) if name in self.tensors else weight.clone()
            for name, weight in weights.items()
        }
        if kept:
            get_ema_multi_avg_fn(decay)(list(kept.values()), list(weights.values()), 0)
        self.tensors = kept

    @torch.no_grad()
    def adopt(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        """Write the averages of these layers into the model, where they are known and finite."""
        for layer in layers:
            averages = {name: self.tensors.pop(name) for name in layer.parameters if name in self.tensors}
            if all(average.isfinite().all() for average in averages.values()):
                for name, average in averages.items():
                    model.get_parameter(name).copy_(average)
