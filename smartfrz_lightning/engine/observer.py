"""Observer: what a training batch shows of a model: its layers, and what a step costs."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smartfrz_lightning.cost import CostMeter, StepCost
from smartfrz_lightning.engine.finding import LayerFinder
from smartfrz_lightning.freezing.compiled import eager
from smartfrz_lightning.layers.layer import Layer


class Observer:
    """Watches batches whose layers or cost are not known yet; compiled parts run eagerly in these.

    Args:
        model: The model.
        exclude: Patterns of what always trains.
        layers: Its layers, if they are known.

    Attributes:
        finder: Finds the layers.
        meter: Measures what a step costs.
    """

    def __init__(self, model: nn.Module, exclude: Sequence[str] = (), layers: Sequence[Layer] = ()) -> None:
        self.finder = LayerFinder(model, exclude, layers)
        self.meter = CostMeter(model)
        self._modes = contextlib.ExitStack()

    def before_batch(self, batch: Any = None) -> None:
        """A training batch begins."""
        self.stop()
        self.meter.before_batch(batch)
        self.finder.before_batch()
        if self.finder.watching or self.meter.measuring:
            self._modes.enter_context(eager())
            self._modes.enter_context(_BackwardCalls(self.before_backward, self.meter.after_backward))

    def before_backward(self, *losses: Tensor, only: bool = False) -> None:
        """These are about to be differentiated; in a loop of your own that is noticed by itself.

        Args:
            losses: The losses.
            only: Whether it is the only backward pass of this batch.
        """
        self.finder.before_backward(*losses)
        self.meter.before_backward()
        if only:
            self._close()

    def find(self, agree: Callable[[Any], Any] = lambda value: value) -> bool:
        """Whether layers are found in what was watched of this batch, which is watched no further for that.

        Args:
            agree: Gives every process the value of the first.
        """
        return self.finder.watching and self.finder.find(agree)

    def after_batch(self) -> StepCost | None:
        """A batch is over; returns the cost of a step if it was measured for the first time."""
        self._close()
        return self.meter.after_batch(self.finder.layers)

    def _close(self) -> None:
        self.finder.stop()
        self.meter.stop()
        self._modes.close()

    def stop(self) -> None:
        """A batch was interrupted, or the training is over."""
        self._close()
        self.meter.drop()


class _BackwardCalls(TorchFunctionMode):
    """Tells of every tensor on which ``backward`` is called, before and after it."""

    def __init__(self, before: Callable[[Tensor], None], after: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._before, self._after = before, after

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not torch.Tensor.backward:
            return func(*args, **(kwargs or {}))
        self._before(args[0])
        out = func(*args, **(kwargs or {}))
        self._after()
        return out
