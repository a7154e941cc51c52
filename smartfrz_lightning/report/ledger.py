"""Ledger: keeps the timeline of a run, what its steps cost and how long things took."""

import contextlib
import time
from collections.abc import Collection, Mapping
from typing import Any

from smartfrz_lightning.report.timeline import FreezeEvent, Timeline, TrainingState


class Ledger:
    """Books what every batch costs, by what is frozen in it.

    Attributes:
        timeline: What is booked.
    """

    def __init__(self, timeline: Timeline | None = None) -> None:
        self.timeline = timeline or Timeline()
        self._unmeasured = 0.0  # batches before the first that could be measured
        self.start_fit()

    # --- one fit

    def start_fit(self) -> None:
        """Seconds of ``fit`` count from here."""
        self._fit_started = time.perf_counter()

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

    # --- batches

    def after_batch(self, work: float, frozen: Collection[str]) -> None:
        """Book a batch.

        Args:
            work: Its forward FLOPs, relative to those of the first measured one, times its passes.
            frozen: Names of the layers that are frozen in it.
        """
        timeline = self.timeline
        if timeline.cost is None:
            self._unmeasured += work
            return
        if not timeline.states or timeline.states[-1].events != len(timeline.events):
            flops = timeline.cost.when_frozen(frozen)
            timeline.states.append(TrainingState(timeline.steps, flops, events=len(timeline.events)))
        timeline.states[-1].work += work + self._unmeasured
        self._unmeasured = 0.0

    def book_repeated(self, work: float) -> None:
        """A batch was repeated with everything training."""
        self.timeline.repeated += work

    # --- freezing

    @property
    def patterns(self) -> int:
        """At most so many patterns of what trains has freezing brought to a function that blocks share.

        A frozen layer changes the pattern of its block, and the block behind the last one gets an input without
        gradient; BatchNorms go to eval mode a little later.
        """
        events = self.timeline.events
        return len(events) + 2 * len({event.step for event in events})

    def change(self, frozen: Mapping[str, float | None], thawed: Collection[str], epoch: float, step: int) -> None:
        """Book layers that freeze and layers that train again."""
        self.timeline.events += [FreezeEvent(name, step, epoch, None, "thaw") for name in thawed]
        self.timeline.events += [FreezeEvent(name, step, epoch, confidence) for name, confidence in frozen.items()]


class _Timed:
    """A context manager of its own: several are entered at every step."""

    __slots__ = ("_start", "_timeline")

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self._timeline.callback_seconds += time.perf_counter() - self._start
