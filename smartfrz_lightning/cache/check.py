"""Whether a call of a frozen module is a function of each sample alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from smartfrz_lightning.private.pytorch import tree_leaves

_TAKE_VALUES = {"item", "tolist", "numpy", "equal", "allclose", "nonzero", "unique", "__array__", "__dlpack__"}
_TAKE_VALUES |= {"__bool__", "__float__", "__int__", "__complex__", "__index__", "__contains__", "__format__"}


class _TakesValues(TorchFunctionMode):
    """Sees whether a program may go by values: they may differ in the next batch."""

    made = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.made |= getattr(func, "__name__", "") in _TAKE_VALUES
        return func(*args, **(kwargs or {}))


def by_sample(run: Callable[[list[Any]], Any], inputs: list[Any], outputs: Sequence[Tensor]) -> bool:
    """Whether the first two samples of a batch give the same among others, alone and elsewhere, and no value decides.

    Among others bit for bit: in batches of one size, a kernel does the same with a row whatever the rest is.

    Args:
        run: What is called with a list of inputs.
        inputs: Those of a batch.
        outputs: What it gave for them.
    """
    count = len(outputs[0]) if outputs else 0

    def run_with(rows: list[int], factor: float = 1.0) -> list[Tensor]:
        parts: dict[int, Tensor] = {}  # what is given twice is one tensor

        def chosen(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if id(leaf) not in parts:
                by_row = leaf.ndim and len(leaf) == count and type(leaf) is Tensor
                parts[id(leaf)] = leaf[rows] if by_row else leaf.detach().clone()
                if by_row and leaf.is_floating_point():  # what scales by the largest of the batch is to see another one
                    parts[id(leaf)][2:] *= factor
            return parts[id(leaf)]

        return [leaf for leaf in tree_leaves(run([chosen(leaf) for leaf in inputs])) if leaf is not None]

    try:
        with torch.no_grad(), _TakesValues() as taken:
            some, others = run_with([0, 1, 2 % count, 3 % count]), run_with([0, 1, count - 1, count - 2], factor=10.0)
            first, second = run_with([0, 0]), run_with([1, 1])
        return not taken.made and all(
            same_values(a[:2], b[:2])
            and alike(a[:2], whole[:2], 1e-3)
            and alike(torch.stack([one[0], two[0]]), whole[:2], 1e-3)
            for a, b, one, two, whole in zip(some, others, first, second, outputs, strict=True)
        )
    except Exception:  # whatever a module makes of other sizes
        return False


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, where NaN equals NaN."""
    if one.shape != other.shape:
        return False
    if torch.equal(one, other) or not one.is_floating_point():
        return torch.equal(one, other)
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


def alike(one: Tensor, other: Tensor, share: float) -> bool:
    """Whether two tensors are the same but for rounding: for a share of the largest value, more of smaller types."""
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    share = 5e-2 if min(one.dtype.itemsize, other.dtype.itemsize) < 4 else share
    scale = other.abs().max().clamp(min=1e-30) if other.numel() else 1.0
    return same_values(one, other) or bool(((one - other).abs() <= share * scale).all())


def same_states(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two of ``random_states`` are the same: of Python, NumPy, PyTorch, and a GPU."""
    if one[0] != other[0] or one[1][2] != other[1][2] or not np.array_equal(one[1][1], other[1][1]):
        return False
    return all(torch.equal(a, b) for a, b in zip(one[2:], other[2:], strict=True) if a is not None)
