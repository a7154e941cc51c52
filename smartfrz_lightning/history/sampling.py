"""Layer tailoring: a few randomly sampled weights stand for a layer, whatever its size (paper, section 3.2)."""

import zlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from smartfrz_lightning.layers.layer import Layer


def sample_indices(size: int, sample_size: int, seed: int = 0, name: str = "") -> Tensor:
    """Which of a layer's weights are sampled: sorted positions ``[sample_size]``, on the CPU.

    They are fixed by the seed and the layer's name, on every machine; of fewer weights some are sampled several times.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    if size < sample_size:
        chosen = torch.randint(size, (sample_size,), generator=generator)
    else:
        chosen = torch.randperm(size, generator=generator)[:sample_size]
    return chosen.sort().values


class WeightSampler:
    """Copy the sampled weights of some layers into one tensor."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer], sample_size: int = 1024, seed: int = 0) -> None:
        self.sample_size = sample_size
        self._model, self._seed = model, seed
        self._plans: dict[str, list[tuple]] = {}
        self.watch(layers)

    def watch(self, layers: Sequence[Layer]) -> None:
        """Sample these layers from now on, in this order. Nothing is drawn again for those that were sampled before."""
        known, parameters = self._plans, dict(self._model.named_parameters())
        self._plans = {
            layer.name: known.get(layer.name) or _plan(parameters, layer, self.sample_size, self._seed)
            for layer in layers
        }

    def __call__(self, out: Tensor) -> Tensor:
        """Fill ``out`` of shape ``[layers, sample_size]`` with the present weights and return it."""
        return self._fill(out, lambda parameter: parameter)

    def gradients(self, out: Tensor) -> Tensor:
        """Fill ``out`` of shape ``[layers, sample_size]`` with the present gradients of the same weights; 0 if none."""
        return self._fill(out.zero_(), lambda parameter: parameter.grad)

    @torch.no_grad()
    def _fill(self, out: Tensor, values_of: Callable[[Tensor], Tensor | None]) -> Tensor:
        for row, parts in zip(out, self._plans.values(), strict=True):
            for parameter, index, where in parts:
                if (values := values_of(parameter)) is not None:
                    _gather(values, index, row[where])
        return out


def _plan(parameters: Mapping[str, Tensor], layer: Layer, sample_size: int, seed: int) -> list[tuple]:
    """For each weight of a layer: the tensor, the positions in it, and where they go."""
    weights = [parameters[name] for name in layer.weights]
    chosen = sample_indices(sum(weight.numel() for weight in weights), sample_size, seed, layer.name)
    plan, offset, start = [], 0, 0
    for weight in weights:
        stop = int(torch.searchsorted(chosen, offset + weight.numel()))
        if stop > start:
            plan.append((weight, (chosen[start:stop] - offset).to(weight.device), slice(start, stop)))
        offset, start = offset + weight.numel(), stop
    return plan


def _gather(values: Tensor, index: Tensor, out: Tensor) -> None:
    values = values.full_tensor() if isinstance(values, DTensor) else values.detach()
    values = values.to_dense() if values.is_sparse else values
    if values.is_contiguous() and values.dtype == out.dtype:
        torch.index_select(values.view(-1), 0, index, out=out)
    else:  # channels_last and low precision: positions count in logical order all the same
        out.copy_(torch.take(values, index))
