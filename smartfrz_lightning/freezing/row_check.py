"""Whether what a module gives for a sample depends on nothing but that sample."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from smartfrz_lightning.freezing.front_call import FrontCall
from smartfrz_lightning.private.pytorch import TorchDispatchMode, tree_flatten, tree_map_only, tree_unflatten


def by_sample(call: FrontCall, module: nn.Module, inputs: list[Any]) -> bool:
    """Whether the first two samples of a batch give the same in other places, among others, and no value decides.

    In double precision where the module can be run in it, as rounding hides what a batch norm mixes.

    Args:
        call: A call with its results.
        module: What is called.
        inputs: Its arguments, flat.
    """
    count, device = call.batch, call.device
    one, other = [0, 1, 2 % count, 3 % count], [1, 0, 2 % count]

    decisions, handed_out = _Decisions(), _HandedOut()

    def run(rows: list[int], double: bool) -> list[Tensor]:
        def chosen(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            part = leaf[rows] if leaf.ndim and len(leaf) == count and type(leaf) is Tensor else leaf.detach().clone()
            if rows is other and len(part) == len(other) and part.is_floating_point():
                part[2] *= 10  # what scales by the largest of the batch is to see another one
            return part.double() if double and part.is_floating_point() else part

        args, kwargs = tree_unflatten([chosen(leaf) for leaf in inputs], call.spec)
        state = {
            name: tensor.detach().clone()
            for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items()
        }
        if double:
            state = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, state)
        with torch.no_grad(), torch.autocast(device.type, enabled=False), decisions, handed_out:
            return [t for t in tree_flatten(functional_call(module, state, args, kwargs))[0] if t is not None]

    for double in (True, False):
        try:
            first, second = run(one, double), run(other, double)
        except Exception:  # whatever a module makes of other types and sizes
            continue
        if decisions.made or handed_out.made:
            return False
        near = 1e-9 if double else 1e-4
        return all(
            isinstance(a, Tensor)
            and len(a) == 4
            and _near(a[:2], b[[1, 0]], near)
            and _near(a[:2], c[:2].to(a.dtype), 0.1)
            for a, b, c in zip(first, second, call.results or (), strict=True)
        )
    return False


class _Decisions(TorchDispatchMode):
    """Sees whether the program goes by values: they may differ in the next batch."""

    made = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.made |= func.overloadpacket.__name__ in (
            "_local_scalar_dense",
            "equal",
            "nonzero",
            "unique_dim",
            "_unique2",
        )
        return func(*args, **(kwargs or {}))


class _HandedOut(TorchFunctionMode):
    """Sees whether values leave PyTorch, which may decide by them too."""

    made = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.made |= getattr(func, "__name__", "") in ("tolist", "numpy", "__array__", "__dlpack__")
        return func(*args, **(kwargs or {}))


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, where NaN equals NaN."""
    if torch.equal(one, other) or not one.is_floating_point():
        return torch.equal(one, other)
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


def alike(kept: Tensor, made: Tensor, coarse: bool) -> bool:
    """Whether two tensors are the same except for rounding.

    Args:
        kept: The one.
        made: The other.
        coarse: They went through a smaller type.
    """
    if not made.is_floating_point():
        return torch.equal(kept, made)
    fine = 1e-9 if made.dtype == torch.float64 else 1e-2 if made.is_cuda else 1e-4
    return _near(kept, made, 5e-2 if coarse or made.dtype.itemsize < 4 else fine)


def _near(one: Tensor, other: Tensor, share: float) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = other.abs().max().clamp(min=1e-30) if other.numel() else 1.0
    return same_values(one, other) or bool(((one - other).abs() <= share * scale).all())
