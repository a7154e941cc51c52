"""Observer: what a training batch shows of a model: its layers, and what a step costs."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smartfrz_lightning.cost.meter import CostMeter
from smartfrz_lightning.cost.step_cost import StepCost
from smartfrz_lightning.freezing.compiled import eager
from smartfrz_lightning.layers.finder import LayerWatch
from smartfrz_lightning.layers.layer import Layer


class Observer:
    """Watches batches whose layers or cost are not known yet; compiled parts run eagerly in these.

    Attributes:
        meter: Measures what a step costs.
        saw_loss: Whether a backward pass was seen in this batch.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.meter = CostMeter(model)
        self._watch: LayerWatch | None = None
        self.saw_loss = False
        self._modes = contextlib.ExitStack()

    def before_batch(self, batch: Any = None, find: bool = True) -> None:
        """A training batch begins."""
        self.meter.before_batch(batch)
        self._watch, self.saw_loss = LayerWatch(self._model) if find else None, False
        if find or self.meter.measuring:
            self._modes.enter_context(eager())
            self._modes.enter_context(_BackwardCalls(self.before_backward))

    def before_backward(self, *losses: Tensor, only: bool = False) -> None:
        """These are about to be differentiated, in the only backward pass of this batch or in one of several."""
        self.saw_loss = True
        if self._watch is not None:
            self._watch.leads_to(*losses)
        if only:
            self._close()

    def find(self, agree: Callable[[Any], Any] = lambda value: value, over: bool = True) -> list[Layer]:
        """The layers, if they were to be found in this batch, which is watched no further for that.

        Before the batch is over there are none while an optimizer is toggled: those of the others are yet to run.
        """
        watch = self._watch
        if watch is None or (watch.toggled and not over):
            return []
        self._watch = None
        watch.stop()
        if not (self.saw_loss or any(parameter.grad is not None for parameter in self._model.parameters())):
            return []  # a skipped step does not show what leads to the loss
        return agree(watch.layers())

    def after_batch(self, layers: Sequence[Layer]) -> StepCost | None:
        """A batch is over; returns the cost of a step if it was measured for the first time."""
        self._close()
        return self.meter.after_batch(layers, self.saw_loss)

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        self.meter.stop()
        self._modes.close()

    def stop(self) -> None:
        """A batch was interrupted, or the training is over."""
        self._close()
        self.meter.drop()


class _BackwardCalls(TorchFunctionMode):
    """Tells of every tensor on which ``backward`` is called."""

    def __init__(self, before: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._before = before

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.backward:
            self._before(args[0])
        return func(*args, **(kwargs or {}))
