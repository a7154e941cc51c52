"""Ledger: keeps the timeline of a run, what its steps cost and how long things took."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from smartfrz_lightning.cost.layer_flops import layer_flops
from smartfrz_lightning.cost.step_meter import StepMeter
from smartfrz_lightning.freezing.compiled import CompileClock
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.report.timeline import Compilation, FreezeEvent, Timeline, TrainingState


class Ledger:
    """Measure the first training batch and one after every freezing event, and book every batch by them.

    Args:
        timeline: That of a run which goes on; a new one by default.

    Attributes:
        timeline: What is booked.
        measuring: Whether a batch is being measured.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.layers.tracer import find_layers
        >>> from smartfrz_lightning.report.ledger import Ledger
        >>> net, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), torch.rand(4, 8)
        >>> layers, ledger = find_layers(net, x), Ledger()
        >>> for batch in range(3):
        ...     ledger.before_batch(net)
        ...     net(x).sum().backward()
        ...     ledger.after_backward()
        ...     ledger.after_batch(layers)
        >>> len(ledger.timeline.states), ledger.timeline.spent.forward  # 3 batches of 2 x 4 x (8 x 8 + 8 x 2)
        (1, 1920)
    """

    def __init__(self, timeline: Timeline | None = None) -> None:
        self.timeline = timeline or Timeline()
        self._meter: StepMeter | None = None
        self._compile_clock = CompileClock()
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
        self.after_backward()
        self._compile_clock.stop()
        self._book_compiling()

    def end_fit(self) -> None:
        """Book the seconds of ``fit`` until now."""
        self.timeline.fit_seconds += time.perf_counter() - self._fit_started
        self.start_fit()

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Time spent inside is time of the callback."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timeline.callback_seconds += time.perf_counter() - start

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
        """Measure this batch if none was measured since the last freezing event."""
        states, events = self.timeline.states, self.timeline.events
        if not states or (events and states[-1].step < events[-1].step):
            self._meter = StepMeter(model)
            self._meter.start()

    def interrupted_before_backward(self) -> contextlib.AbstractContextManager:
        """The backward pass is about to begin; another mode that began before the measuring may end in here."""
        return self._meter.interrupted_before_backward()

    def after_backward(self) -> None:
        """Measuring ends; does nothing if nothing is measured."""
        if not self.measuring:
            return
        self._meter.stop()
        self.timeline.callback_seconds += self._meter.counter.seconds
        flops = self._meter.flops
        if flops.total > flops.forward:  # a skipped step is no measure
            self.timeline.states.append(TrainingState(self.timeline.steps, flops, self._meter.saved_bytes))

    def after_batch(self, layers: Sequence[Layer]) -> None:
        """Book a batch of a model with these layers, as the one that was measured last."""
        self._book_compiling()
        self.timeline.layers = list(layers)
        if not self.timeline.costs and self._meter is not None:
            self.timeline.costs = layer_flops(layers, self._meter.counter)
        if states := self.timeline.states:
            self.timeline.spent.add(states[-1].flops)
            self.timeline.full.add(states[0].flops)

    # --- freezing

    def freeze(self, confidences: dict[str, float | None], epochs: float) -> None:
        """Book layers that freeze now.

        Args:
            confidences: By name of the layer.
            epochs: Epochs done.
        """
        self._book_compiling()
        self.timeline.events += [
            FreezeEvent(name, self.timeline.steps, epochs, confidence) for name, confidence in confidences.items()
        ]

    def note_device_peak(self, device: torch.device) -> None:
        """Book the most memory that was allocated on a CUDA device since this was called last."""
        if device.type == "cuda" and self.timeline.states:
            self.timeline.states[-1].device_bytes = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)

    def _book_compiling(self) -> None:
        count, seconds = self._compile_clock.take()
        if count:
            frozen, booked = len(self.timeline.events), self.timeline.compilations
            if not booked or booked[-1].frozen != frozen:
                booked.append(Compilation(frozen))
            booked[-1].count += count
            booked[-1].seconds += seconds
