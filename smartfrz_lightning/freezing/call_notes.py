"""CallNotes: which calls of a front's modules are the same as earlier ones, whatever the samples."""

from collections.abc import Callable
from typing import Any

import xxhash
from torch import Tensor, nn

from smartfrz_lightning.freezing.fingerprint import Opaque, is_plain_value
from smartfrz_lightning.freezing.front_call import Expression, FrontCall, Owner, Root, autocast_state
from smartfrz_lightning.freezing.front_units import Unit
from smartfrz_lightning.freezing.placeholder import Placeholder
from smartfrz_lightning.freezing.sample_keys import digest, row_digests
from smartfrz_lightning.private.pytorch import is_plain, tree_flatten


class CallNotes:
    """Note calls down.

    The key of a call is made of the module's fingerprint and of its arguments in order: for a placeholder the key of
    the call that gives it, for a tensor from outside its type and shape, for any other value the value. The rows of
    tensors from outside have keys of their own, made of their content.

    Args:
        owner: The cache that calls are made under.
        refuse: Told of a module that is not to be a part of the front, with the reason.

    Attributes:
        expressions: The calls that are known, by key.
    """

    def __init__(self, owner: Owner, refuse: Callable[[Unit, str], None]) -> None:
        self._owner, self._refuse = owner, refuse
        self.expressions: dict[bytes, Expression] = {}
        self._roots: dict[int, Root] = {}

    def end_batch(self) -> None:
        """The batch is over."""
        for root in self._roots.values():
            root.tensor = None
        self._roots.clear()

    def __call__(self, unit: Unit, args: tuple, kwargs: dict[str, Any]) -> FrontCall | None:
        """A call of the front; ``None`` if it is not to be one."""
        leaves, spec = tree_flatten((args, kwargs))
        if not unit.begins and not any(isinstance(leaf, Placeholder) for leaf in leaves):
            return None
        leaves = [leaf.given if isinstance(leaf, Placeholder) and leaf.given is not None else leaf for leaf in leaves]
        before = [leaf.call for leaf in leaves if isinstance(leaf, Placeholder)]
        real = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Placeholder)]
        if any(leaf.requires_grad or type(leaf) not in (Tensor, nn.Parameter) or not is_plain(leaf) for leaf in real):
            return None
        if not all(isinstance(leaf, Tensor) or is_plain_value(leaf) for leaf in leaves):
            self._refuse(unit, "it is given more than tensors and plain values")
            return None
        with_rows = [len(leaf) for leaf in real if leaf.ndim and type(leaf) is Tensor]
        sizes = {call.batch for call in before} or set(with_rows[:1])
        if len(sizes) != 1 or min(sizes) < 2 or not (before or unit.begins):
            return None
        try:
            state = unit.fingerprint()
        except Opaque as error:
            self._refuse(unit, str(error))
            return None
        batch, roots = sizes.pop(), list[Root]()
        about: list[Any] = [state.hex(), str(spec)]
        for leaf in leaves:
            if isinstance(leaf, Placeholder):
                about.append(
                    (leaf.call.expression.key.hex(), leaf.slot, [_place(root, roots) for root in leaf.call.roots])
                )
            elif isinstance(leaf, Tensor):
                kind = str(leaf.dtype), leaf.device.type
                if type(leaf) is Tensor and leaf.ndim and len(leaf) == batch:
                    about.append((*kind, tuple(leaf.shape[1:]), _place(self._root(leaf), roots)))
                else:
                    about.append((*kind, tuple(leaf.shape), digest(leaf).hex()))
            else:
                about.append((type(leaf).__name__, repr(leaf)))
        device = before[0].device if before else real[0].device
        about.append(autocast_state(device))
        key = xxhash.xxh3_128_digest(repr(about).encode())
        known = self.expressions.setdefault(key, Expression(key))
        known.used = True
        return FrontCall(self._owner, unit, known, roots, leaves, spec, batch, device, state)

    def _root(self, tensor: Tensor) -> Root:
        # Every time: what is written through ``.data`` does not show otherwise.
        keys, known = row_digests(tensor), self._roots.get(id(tensor))
        if known is None or known.tensor is not tensor or known.keys != keys:
            known = self._roots[id(tensor)] = Root(tensor, keys)
        return known


def _place(root: Root, roots: list[Root]) -> int:
    """The place of a root among others, which it joins."""
    if root not in roots:
        roots.append(root)
    return roots.index(root)
