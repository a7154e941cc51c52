"""Bytes that autograd keeps for the backward pass of a training step."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class SavedActivations(torch.autograd.graph.saved_tensors_hooks):
    """Count what autograd saves while it is on, each piece of storage once, the model's own tensors left out.

    This is the part of a step's memory that freezing can lower. Blocks under activation checkpointing count with what
    they keep between forward and backward.

    Args:
        model: The model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.memory import SavedActivations
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
        self._counted: set[int] = set()
        super().__init__(self._pack, lambda packed: packed)

    def __enter__(self) -> "SavedActivations":
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided and tensor.numel():
            storage = tensor.untyped_storage()
            address = storage.data_ptr()  # its own while the graph holds it
            if address not in self._own and address not in self._counted:
                self._counted.add(address)
                self.bytes += storage.nbytes()
        return tensor
