"""Which layers still have the weights that they were made with: they know nothing that would be worth keeping."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from smartfrz_lightning.layers.layer import Layer

_SAMPLE = 256
_TAIL = 6.0  # of the Tracy-Widom distribution, beyond which lies one matrix in a million
_TRIED = 10  # batches: fewer of them have not trained a network, they measured it


@torch.no_grad()
def looks_untrained(weight: Tensor) -> bool:
    r"""Whether a weight is nothing but independent random numbers of one size.

    The largest singular value of an :math:`m \times n` matrix of such numbers of standard deviation :math:`\sigma` is
    about :math:`\sigma (\sqrt m + \sqrt n)` (Marchenko and Pastur, 1967), up to a deviation whose distribution is known
    (Johnstone 2001, "On the distribution of the largest eigenvalue in principal components analysis"). Training makes
    some larger (Martin and Mahoney 2021, "Implicit self-regularization in deep neural networks"), orthogonal matrices
    have smaller ones. Of large weights 256 rows and columns are looked at. A vector is made of equal numbers; of a
    matrix with a single row or column nothing can be told, and it counts as untrained.

    Args:
        weight: A matrix, a kernel (whose rows are its outputs), a table or a vector, of any size and precision. It is
            gathered if it is sharded, which all processes have to do.
    """
    values = (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach()
    if values.ndim < 2:
        return bool((values == values.flatten()[:1]).all())
    matrix = values.squeeze()
    if matrix.ndim < 2:
        return True
    matrix = matrix.flatten(1)
    generator = torch.Generator().manual_seed(0)
    for axis in (0, 1):
        chosen = torch.randperm(matrix.shape[axis], generator=generator)[:_SAMPLE]
        matrix = matrix.index_select(axis, chosen.to(matrix.device))
    matrix = (torch.view_as_real(matrix).flatten(1) if matrix.is_complex() else matrix).float()
    size = float(matrix.square().mean().sqrt())
    if not size or not math.isfinite(size):
        return not size
    rows, columns = (math.sqrt(number) for number in matrix.shape)
    deviation = 0.5 * (1 / rows + 1 / columns) ** (1 / 3)
    return float(torch.linalg.matrix_norm(matrix, 2)) / size < rows + columns + _TAIL * deviation


def untrained_end(model: nn.Module, layers: Sequence[Layer], silent: Sequence[bool]) -> int:
    """How many layers, counted from the last one on, still have the weights that they were made with.

    They are all of a network that trains from scratch, and the new ones that someone put behind a pretrained one. What
    has running statistics of more than a few batches is not new; nor is, beside frozen weights, what has no gradient so
    far: the adapters of LoRA leave a pretrained network as it was.
    """
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    adapts = has_adapters(model)
    for number, (layer, quiet) in enumerate(zip(reversed(layers), reversed(silent), strict=True)):
        if (quiet and adapts) or any(_has_moved(modules[name]) for name in layer.stateful):
            return number
        if not all(looks_untrained(parameters[name]) for name in layer.weights):
            return number
    return len(layers)


def has_adapters(model: nn.Module) -> bool:
    """Whether some matrices of a model never train, as where adapters do."""
    return any(not parameter.requires_grad and parameter.ndim > 1 for parameter in model.parameters())


def _has_moved(module: nn.Module) -> bool:
    mean, batches = getattr(module, "running_mean", None), getattr(module, "num_batches_tracked", None)
    if not isinstance(mean, Tensor) or not bool(mean.any()):
        return False
    return not (isinstance(batches, Tensor) and 0 < int(batches) < _TRIED)
