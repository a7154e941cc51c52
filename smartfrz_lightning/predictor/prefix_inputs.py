"""What the prefix predictor sees: the snapshots of every prefix of a network, and where in the run it stands."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smartfrz_lightning.history.movement import Movement

SEEN = ("slowed", "loss")
"""Of every snapshot, see :func:`prefix_inputs`."""

CONTEXT = ("depth", "left")
"""Of every prefix, see :func:`prefix_inputs`."""

LEAST_LEFT = 0.02


def prefix_inputs(movement: Movement, frozen: Sequence[bool] = ()) -> tuple[Tensor, Tensor]:
    """Describe every prefix of a network: the first layer, the first two, and so on to all before the head.

    Of each snapshot:

    - ``slowed``: logarithm of how far the weights moved since the one before, over the mean learning rate, minus
      the same of the first snapshot at which the layer trained; the mean over the layers of the prefix that train;
    - ``loss``: logarithm of the training loss relative to that of the first batch.

    Of the prefix at the latest of them: its ``depth`` as a share of the layers, and ``left``: logarithm of the share of
    the run that is left, as if that were at least 2 %.

    Args:
        movement: Of the layers before the head.
        frozen: Which of these layers are frozen by now, and show nothing; none by default.

    Returns:
        ``[prefixes, snapshots, len(SEEN)]`` and ``[prefixes, len(CONTEXT)]``, about of unit scale.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.history.movement import Movement
        >>> from smartfrz_lightning.predictor.prefix_inputs import prefix_inputs
        >>> moved = torch.tensor([[0.1, 0.1], [0.01, 0.1]])  # of two layers, the first one slows down
        >>> rates, losses, progress = torch.ones(2), torch.tensor([1.0, 0.1]), torch.tensor([0.5, 0.9])
        >>> seen, context = prefix_inputs(Movement(moved, rates, losses, progress))
        >>> [[round(value, 1) for value in row] for row in seen[:, -1].tolist()], context.tolist()
        ([[-2.0, -1.0], [-1.0, -1.0]], [[0.5, -1.0], [1.0, -1.0]])
    """
    layers = movement.moved.shape[1]
    moves = movement.moved > 0  # what was frozen did not
    pace = movement.moved.double().clamp(min=1e-9).log10() - movement.rates.double().clamp(min=1e-12).log10()[:, None]
    first = pace[moves.int().argmax(0), torch.arange(layers)]
    counted = 1 - torch.tensor(frozen or [False] * layers).double()
    slowed = torch.where(moves, pace - first, 0.0)
    slowed = (slowed * counted).cumsum(1) / counted.cumsum(0).clamp(min=1)
    losses = movement.losses.double().clamp(min=1e-2).log10()
    seen = [2 * slowed.T, (2 * losses + 1).expand(layers, -1)]
    left = (1 - movement.progress[-1]).clamp(min=LEAST_LEFT).log10()
    context = [torch.arange(1, layers + 1) / layers, left.expand(layers)]
    return torch.stack(seen, -1).float(), torch.stack(context, -1).float()
