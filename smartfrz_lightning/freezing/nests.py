"""Nests of arguments: told from each other without their tensors, and filled with others."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class NotPlain(Exception):
    """A call has arguments of which it cannot be said whether they are the same another time."""


def described(tree: Any, inputs: list[Tensor], batch: int = 0) -> Any:
    """A nest of arguments without its tensors, which are appended to ``inputs``; the same for the same arguments.

    Args:
        tree: The nest.
        inputs: Gets the tensors.
        batch: A number that stands for the size of the batch; none if 0.

    Raises:
        NotPlain: There is something in it that cannot be compared.
    """
    if isinstance(tree, Tensor):
        inputs.append(tree)
        return "*"
    if batch and type(tree) is int and tree == batch:
        return "batch"
    if tree is None or isinstance(tree, bool | int | float | str | bytes | type(Ellipsis)):
        return tree if not isinstance(tree, bool | float | str) else (type(tree).__name__, repr(tree))
    if isinstance(tree, tuple | list) and _plain_sequence(type(tree)):
        return (type(tree).__name__, tuple([described(entry, inputs, batch) for entry in tree]))
    if isinstance(tree, dict) and (type(tree) in (dict, OrderedDict) or hasattr(tree, "to_tuple")):  # transformers
        return (type(tree).__name__, tuple([(key, described(entry, inputs, batch)) for key, entry in tree.items()]))
    if isinstance(tree, slice):
        return ("slice", described([tree.start, tree.stop, tree.step], inputs, batch))
    if isinstance(tree, torch.dtype | torch.device | torch.memory_format | torch.layout):
        return str(tree)
    raise NotPlain


def _plain_sequence(kind: type) -> bool:
    return kind in (tuple, list, torch.Size) or (hasattr(kind, "_fields") and kind is not PackedSequence)


def filled(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nest with other tensors, in order."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[filled(entry, tensors) for entry in tree])
    if isinstance(tree, tuple | list):
        made = [filled(entry, tensors) for entry in tree]
        return type(tree)(made) if type(tree) is not torch.Size else tuple(made)
    if isinstance(tree, dict):
        made = {key: filled(entry, tensors) for key, entry in tree.items()}
        return type(tree)(made) if type(tree) in (dict, OrderedDict) else type(tree)(**made)
    if isinstance(tree, slice):
        return slice(*[filled(entry, tensors) for entry in (tree.start, tree.stop, tree.step)])
    return tree


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a nest in order; empty if there is something else in it that cannot be compared."""
    found: list[Tensor] = []
    try:
        described(tree, found)
    except NotPlain:
        return []
    return found
