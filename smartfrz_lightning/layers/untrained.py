"""Which layers still have the weights that they were made with: they know nothing that would be worth keeping."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from smartfrz_lightning.layers.layer import Layer

_SAMPLE = 256
_TAIL = 4.0  # of the Tracy-Widom distribution, beyond which lies less than one matrix in ten thousand


@torch.no_grad()
def looks_untrained(weight: Tensor) -> bool:
    r"""Whether a weight is nothing but independent random numbers, or the same number everywhere.

    The largest singular value of an :math:`m \times n` matrix of such numbers of standard deviation :math:`\sigma` is
    about :math:`\sigma (\sqrt m + \sqrt n)` (Marchenko and Pastur, 1967), up to a deviation whose distribution is known
    (Johnstone 2001, "On the distribution of the largest eigenvalue in principal components analysis"). Training makes
    some larger (Martin and Mahoney 2021, "Implicit self-regularization in deep neural networks"), orthogonal matrices
    have smaller ones. Of large weights 256 rows and columns are looked at.

    Args:
        weight: A matrix, a kernel (whose rows are its outputs), a table or a vector, of any size and precision. It is
            gathered if it is sharded, which all processes have to do.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.layers.untrained import looks_untrained
        >>> weight = nn.Linear(64, 32).weight.detach()
        >>> looks_untrained(weight), looks_untrained(weight + 0.1 * torch.ones(32, 1) * torch.randn(64))
        (True, False)
    """
    values = (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().squeeze()
    if values.ndim < 2:
        return bool((values == values.flatten()[:1]).all())
    matrix = values.flatten(1)
    generator = torch.Generator().manual_seed(0)
    for axis in (0, 1):
        chosen = torch.randperm(matrix.shape[axis], generator=generator)[:_SAMPLE]
        matrix = matrix.index_select(axis, chosen.to(matrix.device))
    matrix = matrix.float()
    size = float(matrix.square().mean().sqrt())
    if not size:
        return True
    rows, columns = (math.sqrt(number) for number in matrix.shape)
    deviation = 0.5 * (1 / rows + 1 / columns) ** (1 / 3)
    return float(torch.linalg.matrix_norm(matrix, 2)) / size < rows + columns + _TAIL * deviation


def untrained_end(model: nn.Module, layers: Sequence[Layer], silent: Sequence[bool]) -> int:
    """How many layers, counted from the last one on, still have the weights that they were made with.

    They are all of a network that trains from scratch, and the new ones that someone put behind a pretrained one. What
    has running statistics that have moved is not new, nor is what gives nothing to the loss so far: the adapters of
    LoRA leave a pretrained network as it was.

    Args:
        model: Has the layers.
        layers: In forward order.
        silent: Which of these have had no gradient but zeros.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.layers.tracer import find_layers
        >>> from smartfrz_lightning.layers.untrained import untrained_end
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> layers = find_layers(net, torch.rand(1, 8))
        >>> untrained_end(net, layers, [False] * 3)
        3
        >>> _ = net[0].weight.data.add_(1.0)
        >>> untrained_end(net, layers, [False] * 3)
        2
    """
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    for number, (layer, quiet) in enumerate(zip(reversed(layers), reversed(silent), strict=True)):
        kept = [getattr(modules[name], "running_mean", None) for name in layer.stateful]
        means = [mean for mean in kept if isinstance(mean, Tensor)]
        if any(bool(mean.any()) for mean in means) or (quiet and not means):
            return number
        if not all(looks_untrained(parameters[name]) for name in layer.weights):
            return number
    return len(layers)
