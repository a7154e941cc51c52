"""Plain attributes of modules and callbacks, such as counters, queues and generators, at some moment."""

import contextlib
import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TORCH = set(vars(nn.Module())) - {"training"}

Attributes = list[tuple[object, dict[str, Any]]]
"""Objects, and the plain attributes of each: all but what PyTorch keeps in its modules."""


def attributes(owners: Iterable[object], memo: Mapping[int, Any]) -> Attributes:
    """Copies of what objects hold: lists, dicts, tensors and generators; for what ``memo`` has by ``id``, that."""
    seen = dict(memo)
    return [(owner, {k: _copied(v, seen) for k, v in vars(owner).items() if k not in _TORCH}) for owner in owners]


@contextlib.contextmanager
def attributes_as(begun: Attributes, memo: Mapping[int, Any]) -> Iterator[None]:
    """Give objects the attributes that they had, in copies, and put back what they have now afterwards."""
    now = [(owner, {k: v for k, v in vars(owner).items() if k not in _TORCH}) for owner, _ in begun]
    seen = dict(memo)
    _set([(owner, {k: _copied(v, seen) for k, v in own.items()}) for owner, own in begun])
    try:
        yield
    finally:
        _set(now)


def _set(owned: Attributes) -> None:
    for owner, own in owned:
        for name in [name for name in vars(owner) if name not in _TORCH and name not in own]:
            del vars(owner)[name]
        vars(owner).update(own)


def _copied(value: Any, seen: dict[int, Any]) -> Any:
    """A copy; what several objects hold is one in the copies too."""
    if id(value) in seen:
        return seen[id(value)]
    made = value
    if isinstance(value, Tensor):
        made = value if value.grad_fn is not None else value.detach().clone()
    elif isinstance(value, torch.Generator):
        made = value.clone_state()
    elif isinstance(value, random.Random | np.random.Generator | np.random.RandomState):
        made = copy.deepcopy(value)
    elif isinstance(value, dict):
        made = seen[id(value)] = copy.copy(value)
        made.update({key: _copied(entry, seen) for key, entry in value.items()})
    elif type(value) in (list, set, deque, tuple):
        entries = [_copied(entry, seen) for entry in value]
        made = deque(entries, value.maxlen) if isinstance(value, deque) else type(value)(entries)
    elif isinstance(value, SimpleNamespace) or (is_dataclass(value) and not isinstance(value, type)):
        made = copy.copy(value)
        vars(made).update({key: _copied(entry, seen) for key, entry in vars(value).items()})
    if made is not value:
        seen[id(value)] = made
    return made
