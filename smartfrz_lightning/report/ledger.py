"""Ledger: keeps the timeline of a run, what its steps cost and how long things took."""

import contextlib
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.cost.layer_flops import layer_flops
from smartfrz_lightning.cost.step_meter import StepMeter
from smartfrz_lightning.freezing.compiled import CompileClock
from smartfrz_lightning.report.timeline import Compilation, FreezeEvent, Timeline, TrainingState


class Ledger:
    """Measure the first training batch and one after every change of what is frozen, and book every batch by them.

    Args:
        timeline: That of a run which goes on; a new one by default.

    Attributes:
        timeline: What is booked.
        measuring: Whether a batch is being measured.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.layers import find_layers
        >>> from smartfrz_lightning.report import Ledger, Timeline
        >>> net, batches = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), [torch.rand(n, 8) for n in (4, 4, 2)]
        >>> ledger = Ledger(Timeline(find_layers(net, batches[0])))
        >>> for x in batches:
        ...     ledger.before_batch(net)
        ...     net(x).sum().backward()
        ...     ledger.after_batch(x)
        >>> len(ledger.timeline.states), ledger.timeline.spent.forward  # 10 samples of 2 x (8 x 8 + 8 x 2)
        (1, 1600.0)
    """

    def __init__(self, timeline: Timeline | None = None) -> None:
        self.timeline = timeline or Timeline()
        self._meter: StepMeter | None = None
        self._unmeasured = 0.0  # sizes of batches before the first that could be measured
        self._compile_clock = CompileClock()
        self._device_bytes = 0
        self.start_fit()

    # --- one fit

    def start_fit(self) -> None:
        """Seconds of ``fit`` count from here."""
        self._fit_started = time.perf_counter()

    def start_training(self) -> None:
        """Compilations count from here, if they do not already."""
        self._compile_clock.start()

    def stop(self) -> None:
        """The fit is over, or broke off; may be called more than once."""
        self.stop_measuring()
        self._compile_clock.stop()
        self._book_compiling()

    def end_fit(self) -> None:
        """Book the seconds of ``fit`` until now."""
        self.timeline.fit_seconds += time.perf_counter() - self._fit_started
        self.start_fit()

    def timed(self) -> contextlib.AbstractContextManager:
        """Time spent inside is time of the callback."""
        return _Timed(self.timeline)

    def state_dict(self) -> dict[str, Any]:
        """The timeline until now, as plain values."""
        timeline = self.timeline.state_dict()
        timeline["fit_seconds"] += time.perf_counter() - self._fit_started
        return timeline

    # --- one batch

    @property
    def measuring(self) -> bool:
        return self._meter is not None and self._meter.running

    def before_batch(self, model: nn.Module) -> None:
        """Measure this batch if none was measured since the last change."""
        states = self.timeline.states
        if not states or states[-1].events != len(self.timeline.events):
            self._meter = StepMeter(model)
            self._meter.start()

    def interrupted_before_backward(self, device: torch.device) -> contextlib.AbstractContextManager:
        """The backward pass is about to begin; another mode that began before the measuring may end in here."""
        if self._meter is None or not self._meter.running:  # the first of LBFGS's closures alone is measured
            return contextlib.nullcontext()
        self._device_bytes = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        return self._meter.interrupted_before_backward()

    def after_backward(self) -> None:
        """Nothing more of this batch is to be measured; does nothing if nothing is measured."""
        if self._meter is not None and self._meter.running:
            self._meter.stop()
            self.timeline.callback_seconds += self._meter.counter.seconds

    def stop_measuring(self) -> None:
        """Forget what was measured of a batch that was skipped or broke off."""
        if self._meter is not None:
            self._meter.stop()
            self._meter = None

    def after_batch(self, batch: Any, passes: int = 1) -> None:
        """Book a batch, as the one that was measured last, by its size.

        Args:
            batch: What it consists of.
            passes: How often it went forward and backward; measured is the first time.
        """
        timeline, size = self.timeline, batch_size(batch)
        if self._meter is not None:
            self.after_backward()
            self._book_measured(self._meter, size)
            self._meter = None
        if timeline.states:
            timeline.states[-1].seen += passes * size + self._unmeasured
            self._unmeasured = 0.0
        else:
            self._unmeasured += passes * size

    def book_beside(self, batch: Any) -> None:
        """A copy of the model, of which everything trains, has seen this batch too."""
        self.timeline.beside += batch_size(batch)

    def book_skipped(self, layers: Collection[str], share: float, batch: Any) -> None:
        """Book what a cached front did not do in the latest batch.

        Args:
            layers: Names of the layers in that front.
            share: Share of the samples that it was not run for.
            batch: What the batch consists of.
        """
        timeline = self.timeline
        if share and timeline.states:
            cost = sum(cost.own + cost.following for cost in timeline.costs if cost.layer in layers)
            timeline.states[-1].skipped += share * cost * batch_size(batch) / timeline.states[0].size

    def _book_measured(self, meter: StepMeter, size: float) -> None:
        self._book_compiling()
        if not meter.counter.saw_backward:  # a skipped step is no measure
            return
        timeline = self.timeline
        if not timeline.costs:
            timeline.costs = layer_flops(timeline.layers, meter.counter)
        events, memory = len(timeline.events), (meter.saved_bytes, self._device_bytes)
        state = TrainingState(timeline.steps, meter.flops, *memory, size=size, events=events)
        timeline.states.append(state)

    # --- freezing

    def change(self, frozen: Mapping[str, float | None], thawed: Collection[str], epoch: float) -> None:
        """Book layers that freeze and layers that train again.

        Args:
            frozen: The confidence of each layer that freezes, by its name.
            thawed: Names of the layers that train again.
            epoch: Epochs done.
        """
        self._book_compiling()
        steps = self.timeline.steps
        self.timeline.events += [FreezeEvent(name, steps, epoch, None, "thaw") for name in thawed]
        self.timeline.events += [FreezeEvent(name, steps, epoch, sure) for name, sure in frozen.items()]

    def _book_compiling(self) -> None:
        count, seconds = self._compile_clock.take()
        if count:
            frozen, booked = len(self.timeline.events), self.timeline.compilations
            if not booked or booked[-1].frozen != frozen:
                booked.append(Compilation(frozen))
            booked[-1].count += count
            booked[-1].seconds += seconds


class _Timed:
    """A context manager of its own: several are entered at every step."""

    __slots__ = ("_start", "_timeline")

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self._timeline.callback_seconds += time.perf_counter() - self._start


def batch_size(batch: Any) -> float:
    """How much a batch is: the values in its largest tensor, or 1 where it has none that can be seen.

    Images of one size count by their number, padded sentences by their number times the length that they are padded to.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.report.ledger import batch_size
        >>> batch_size((torch.zeros(8, 3, 32, 32), torch.zeros(8))) / batch_size([torch.zeros(4, 3, 32, 32)])
        2.0
        >>> batch_size("a user's own kind of batch")
        1.0
    """
    return float(_largest(batch) or 1)


def _largest(tree: Any) -> int:
    # Called at every step, where torch's pytree would take longer than all the rest; nor does it open a BatchEncoding.
    if isinstance(tree, Tensor):
        return tree.numel()
    if isinstance(tree, tuple | list):
        return max(map(_largest, tree), default=0)
    return max(map(_largest, tree.values()), default=0) if isinstance(tree, Mapping) else 0
