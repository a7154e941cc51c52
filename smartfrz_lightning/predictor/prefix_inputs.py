"""What the prefix predictor sees: the snapshots of every prefix of a network, and where in the run it stands."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from smartfrz_lightning.history.movement import Movement

SEEN = ("moved", "slowed", "rate", "loss", "progress")
"""Of every snapshot, see :func:`prefix_inputs`."""

CONTEXT = ("depth", "depth_squared", "progress", "length", "parameters", "flops")
"""Of every prefix, see :func:`prefix_inputs`."""

_LEAST = 1e-6


def prefix_inputs(
    movement: Movement, sizes: Sequence[float], flops: Sequence[float], steps: float, frozen: Sequence[bool] = ()
) -> tuple[Tensor, Tensor]:
    """Describe every prefix of a network: the first layer, the first two, and so on to all before the head.

    Of each snapshot, as the mean over the layers of the prefix that train:

    - ``moved``: logarithm of how far the weights moved since the one before, relative to their norm;
    - ``slowed``: logarithm of that over the sum of learning rates, minus the same of the first snapshot;
    - ``rate``: logarithm of the sum of rates, relative to the largest until now;
    - ``loss``: training loss relative to that at the start of the run;
    - ``progress``: share of the run that was done.

    Of the prefix at the latest of them: its ``depth`` as a share of the layers, ``depth_squared``, ``progress``, the
    ``length`` of the run (logarithm of the steps), its share of ``parameters`` and of forward ``flops``.

    Args:
        movement: Of the layers before the head.
        sizes: Parameters of these layers, and of the rest.
        flops: Forward FLOPs of these layers, and of the rest.
        steps: Of the whole run.
        frozen: Which of these layers are frozen by now, and show nothing; none by default.

    Returns:
        ``[prefixes, snapshots, len(SEEN)]`` and ``[prefixes, len(CONTEXT)]``, about of unit scale.
    """
    layers = movement.moved.shape[1]
    moved = movement.moved.double().clamp(min=_LEAST).log10()
    rates = movement.rates.double().clamp(min=1e-12).log10()
    pace = moved - rates[:, None]
    count = torch.arange(1, layers + 1)
    counted = 1 - torch.tensor(frozen or [False] * layers).double()
    weight = counted.cumsum(0).clamp(min=1)

    def of_prefixes(values: Tensor) -> Tensor:
        return ((values * counted).cumsum(1) / weight).T

    def of_run(values: Tensor) -> Tensor:
        return values.double().expand(layers, -1)

    seen = [
        of_prefixes(moved) + 2,
        2 * of_prefixes(pace - pace[0]),
        of_run(rates - rates.cummax(0).values).clamp(min=-3),
        of_run(movement.losses).clamp(0, 2),
        of_run(movement.progress),
    ]
    depth = (count / layers).double()
    shares = [torch.tensor(part, dtype=torch.double) for part in (sizes, flops)]
    at = float(movement.progress[-1])
    context = [
        depth,
        depth.square(),
        torch.full((layers,), at).double(),
        torch.full((layers,), math.log10(max(steps, 1)) - 3).double(),
        *(part.cumsum(0)[:layers] / part.sum() for part in shares),
    ]
    return torch.stack(seen, -1).float(), torch.stack(context, -1).float()
