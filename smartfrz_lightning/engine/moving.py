"""Which parameters without gradients may move all the same."""

from collections.abc import Collection

from torch import nn

_MOST = 4
"""Times as many as those that train: more than that is a backbone under adapters or a head, and stands still."""


def may_move(model: nn.Module, training: Collection[str] = ()) -> list[str]:
    """Names of parameters that may be averages of the weights, teachers or targets: all that have no gradients.

    None if they are more than four times as many as those that train, the ones named in ``training`` included.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    still = [name for name, p in model.named_parameters() if not p.requires_grad and name not in training]
    size = sum(sizes[name] for name in still)
    return still if size <= _MOST * (sum(sizes.values()) - size) else []
