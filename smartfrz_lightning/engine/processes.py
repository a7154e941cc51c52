"""How the processes of a training agree, and what their wrappers need when it changes what trains."""

from typing import Any

from torch import Tensor, distributed, nn

from smartfrz_lightning.freezing.wrappers import rebuild_ddp, reshard


class Processes:
    """Those of ``torch.distributed``, for a training loop of your own; a single one where there are none.

    Args:
        model: The model as the loop calls it: as it is, in ``DistributedDataParallel``, with FSDP2's ``fully_shard``,
            or as Fabric returned it.

    Attributes:
        is_first: Whether this is the process that decides.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.is_first = not several_processes() or distributed.get_rank() == 0

    def agree(self, value: Any) -> Any:
        """What the first process gives; every process calls it."""
        if not several_processes():
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes; every process calls it."""
        if not several_processes():
            return values
        summed = values.to(next(self._model.parameters()).device, copy=True)
        distributed.all_reduce(summed)
        return summed / distributed.get_world_size()

    def before_change(self) -> None:
        """Layers are about to freeze or thaw; every process calls it."""
        reshard(self._model)

    def after_change(self) -> None:
        """Layers froze or thawed; every process calls it."""
        rebuild_ddp(self._model)


def several_processes() -> bool:
    """Whether ``torch.distributed`` has more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
