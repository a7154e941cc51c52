"""Which parameters without gradients may move all the same."""

from collections.abc import Collection

from torch import nn


def may_move(model: nn.Module, most: float, training: Collection[str] = ()) -> list[str]:
    """Names of parameters that may be averages of the weights, teachers or targets: all that have no gradients.

    None if they are more than ``most`` times as many as those that train, the ones named in ``training`` included:
    that is a backbone, which stands still, and of which copies would cost too much memory.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    still = [name for name, p in model.named_parameters() if not p.requires_grad and name not in training]
    size = sum(sizes[name] for name in still)
    return still if size <= most * (sum(sizes.values()) - size) else []
