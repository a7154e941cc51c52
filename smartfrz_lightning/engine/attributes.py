"""Plain attributes of modules and callbacks, such as counters, queues and generators, at some moment."""

import contextlib
import copy
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TORCH = set(vars(nn.Module())) - {"training"}
_ENTRIES = (list, set, deque)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)

Attributes = list[tuple[Any, Any]]
"""Objects, and what each holds: its plain attributes, its entries, or the state of a generator."""


def attributes(owners: Iterable[object], memo: Mapping[int, Any], most: float = math.inf) -> Attributes:
    """What objects hold, and the lists, dicts and generators in them; of tensors and arrays copies.

    Tensors in ``memo``, by ``id``, stand for themselves. Modules that are no submodules, such as a teacher in a list,
    count as long as all of them have ``most`` parameters: what is larger stands still.
    """
    copies = dict(memo)  # what several objects hold is one in the copies too
    left = most

    def copied(value: Tensor | np.ndarray) -> Any:
        if id(value) not in copies:
            copies[id(value)] = _copy(value)
        return copies[id(value)]

    def enters(modules: list[nn.Module]) -> bool:
        nonlocal left
        size = sum(p.numel() for m in modules for p in m.parameters(recurse=False) if id(p) not in memo)
        if size > left:
            return False
        left -= size
        return True

    return _held_by(owners, copied, enters)


@contextlib.contextmanager
def attributes_as(begun: Attributes, memo: Mapping[int, Any]) -> Iterator[None]:
    """Let objects hold what they did, in place of what ``memo`` has by ``id`` that, and afterwards what they do now.

    Lists, dicts and generators stay the objects that they are: a hook or a closure may have them too.
    """
    now = _held_by((one for one, _ in begun), lambda value: value)
    try:
        for one, held in begun:
            _put(one, held, lambda value: memo.get(id(value), value))
        yield
    finally:
        for one, held in now:
            _put(one, held, lambda value: value)


def _held_by(
    roots: Iterable[object],
    array_as: Callable[[Any], Any],
    enters: Callable[[list[nn.Module]], bool] = lambda modules: False,
) -> Attributes:
    found: dict[int, tuple[Any, Any]] = {}
    stack = list(roots)
    known = set(map(id, stack))

    def kept(value: Any) -> Any:
        if isinstance(value, nn.Module):
            modules = [module for module in value.modules() if id(module) not in known]
            known.update(map(id, modules))
            if modules and enters(modules):
                stack.extend(part for module in modules for part in _parts(module))
        elif _is_container(value):
            stack.append(value)
        return array_as(value) if isinstance(value, (Tensor, np.ndarray)) else value

    while stack:
        one = stack.pop()
        if id(one) not in found:
            found[id(one)] = one, _state(one) if isinstance(one, _GENERATORS) else _mapped(_content(one), kept)
    return list(found.values())


def _parts(module: nn.Module) -> list[Any]:
    held = (vars(module).get(name) for name in ("_parameters", "_buffers", "_modules"))
    return [module, *(part for part in held if isinstance(part, dict))]  # TorchScript has others


def _copy(value: Tensor | np.ndarray) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy() if value.flags.writeable else value
    if isinstance(value, nn.Parameter):
        return copy.deepcopy(value)  # of its own class
    return value if value.grad_fn is not None else value.detach().clone()


def _is_container(value: Any) -> bool:
    kept = isinstance(value, (dict, SimpleNamespace, *_GENERATORS)) or type(value) in _ENTRIES
    return kept or (is_dataclass(value) and not isinstance(value, type) and hasattr(value, "__dict__"))


def _content(one: Any) -> Any:
    if isinstance(one, dict):
        return dict(one)
    if type(one) in _ENTRIES:
        return list(one)
    return {name: value for name, value in vars(one).items() if name not in _TORCH}


def _mapped(content: Any, value_as: Callable[[Any], Any]) -> Any:
    """The same dict, list or tuple with other values, those in tuples too."""

    def mapped(value: Any) -> Any:
        return _mapped(value, value_as) if type(value) is tuple else value_as(value)

    if isinstance(content, dict):
        return {name: mapped(value) for name, value in content.items()}
    return type(content)(map(mapped, content))


def _put(one: Any, held: Any, value_as: Callable[[Any], Any]) -> None:
    if isinstance(one, _GENERATORS):
        _set_state(one, held)
        return
    content, now = _mapped(held, value_as), _content(one)
    if _same(content, now):
        return
    if isinstance(one, dict):
        one.clear()
        for key, value in content.items():  # outputs of transformers have no update()
            one[key] = value
    elif type(one) in _ENTRIES:
        one.clear()
        (one.update if isinstance(one, set) else one.extend)(content)
    else:
        for name in now.keys() - content.keys():
            del vars(one)[name]
        vars(one).update(content)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and _same(list(one.values()), list(other.values()))
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        (generator.setstate if isinstance(generator, random.Random) else generator.set_state)(state)
