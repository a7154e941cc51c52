"""CostMeter: measures what a training step costs, and how that grows with the batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from smartfrz_lightning.cost.forward import ForwardFlops
from smartfrz_lightning.cost.step_cost import StepCost, step_cost
from smartfrz_lightning.layers.layer import Layer


class CostMeter:
    """Counts the forward FLOPs of the first batch; others cost as many times as much as they are larger."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._reference = 0.0  # size of the batch that was measured
        self._counter: ForwardFlops | None = None
        self._size = 1.0

    @property
    def measuring(self) -> bool:
        """Whether this batch is being measured."""
        return self._counter is not None

    def before_batch(self, batch: Any) -> None:
        """A training batch begins."""
        self.drop()
        self._size = batch_size(batch)
        if not self._reference:
            self._counter = ForwardFlops(self._model)
            self._counter.start()

    def stop(self) -> None:
        """No more of this batch is counted."""
        if self._counter is not None:
            self._counter.stop()

    def drop(self) -> None:
        """Forget what was counted of a batch that was interrupted."""
        self.stop()
        self._counter = None

    def after_batch(self, layers: Sequence[Layer], saw_backward: bool) -> StepCost | None:
        """A training batch is done; returns the cost of a step if it was the first one to be measured."""
        self.stop()
        counter, self._counter = self._counter, None
        if counter is None or not saw_backward:  # a skipped step is no measure
            return None
        self._reference = self._size
        return step_cost(layers, counter.parameters, counter.products)

    def work(self) -> float:
        """Size of this batch, relative to that of the measured one."""
        return self._size / self._reference if self._reference else 1.0

    def state_dict(self) -> dict[str, Any]:
        """What was measured."""
        return {"reference": self._reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self._reference = state["reference"]


def batch_size(batch: Any) -> float:
    """How much a batch is: the number of values in all of its tensors; 1 where none can be seen.

    Images count by their pixels, padded sentences by the length that they are padded to, lists of images one by one.
    """
    return float(_values(batch) or 1)


def _values(tree: Any) -> int:
    # Called at every step, where torch's pytree would take longer than all the rest; nor does it open a BatchEncoding.
    if isinstance(tree, Tensor):
        return tree.numel()
    if isinstance(tree, tuple | list):
        return sum(map(_values, tree))
    return sum(map(_values, tree.values())) if isinstance(tree, Mapping) else 0
