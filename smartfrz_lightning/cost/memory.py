"""Bytes that autograd keeps for the backward pass of a training step."""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from typing_extensions import Self


class SavedActivations(torch.autograd.graph.saved_tensors_hooks):
    """The most that autograd keeps at once while this is on, each piece of storage once, without the model's tensors.

    This is the part of a step's memory that freezing can lower. Blocks under activation checkpointing count with what
    they keep between forward and backward.

    Args:
        model: The model.

    Attributes:
        bytes: The most bytes that were kept at one time.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.cost.memory import SavedActivations
        >>> net = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
        >>> with SavedActivations(net) as saved:
        ...     net(torch.rand(4, 10)).sum().backward()
        >>> saved.bytes  # the inputs of both layers: 4 x (10 + 20) float32
        480
    """

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        local = [t.to_local() if isinstance(t, DTensor) else t for t in [*model.parameters(), *model.buffers()]]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in local if tensor.numel()}
        self._holders: Counter[int] = Counter()  # of each piece of storage that is kept now, by its address
        self._kept_now = 0
        super().__init__(self._pack, lambda saved: saved.tensor)

    def __enter__(self) -> "Self":
        super().__enter__()
        # torch.func's transforms refuse to run while such hooks are on: stand aside for them, and see nothing inside.
        self._stock = torch.autograd.graph.disable_saved_tensors_hooks
        torch.autograd.graph.disable_saved_tensors_hooks = self._stand_aside
        return self

    def __exit__(self, *error: Any) -> None:
        torch.autograd.graph.disable_saved_tensors_hooks = self._stock
        super().__exit__(*error)

    @contextlib.contextmanager
    def _stand_aside(self, error_message: str) -> Iterator[None]:
        super().__exit__()
        try:
            with self._stock(error_message):
                yield
        finally:
            super().__enter__()

    def _pack(self, tensor: Tensor) -> "_Saved":
        saved = _Saved(tensor)
        if tensor.layout is torch.strided and tensor.numel():
            storage = tensor.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
            if address not in self._own:
                self._keep(address, size)
                weakref.finalize(saved, self._release, address, size).atexit = False
        return saved

    def _keep(self, address: int, size: int) -> None:
        if not self._holders[address]:
            self._kept_now += size
            self.bytes = max(self.bytes, self._kept_now)
        self._holders[address] += 1

    def _release(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            self._kept_now -= size


class _Saved:
    """A tensor as the graph holds it: it dies when the graph lets go, and its address is its own until then."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
