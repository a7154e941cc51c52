"""Pays: whether a front cache saves time, by two medians."""

import math
import statistics
import time
from collections.abc import Callable

_LEAST = 0.03  # share of a step that a cache is to save
_ENOUGH = 10  # steps of either kind whose medians can be compared


class Pays:
    """Compares the seconds of steps in which everything was known with those in which something was not.

    Args:
        clock: Gives seconds.

    Attributes:
        batches_per_epoch: ``inf`` if that is not known.
        seconds: That were saved in all.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.batches_per_epoch, self.seconds, self._began, self._clock = math.inf, 0.0, 0.0, clock
        self.front_changed()

    def front_changed(self) -> None:
        """Steps take another time from now on."""
        self._known: list[float] = []
        self._unknown: list[float] = []
        self._epochs = self._before = self._batches = self._hits = 0
        self._rows = 0.0

    def batch_begins(self) -> None:
        """A batch begins."""
        self._began = self._clock()

    def batch_ends(self, rows: float, missed: bool, full: bool) -> str:
        """A batch is over; why there is no sense in going on, if samples do not come again in the second epoch.

        Args:
            rows: Share of the samples that were known.
            missed: Whether the front was run.
            full: Not all that was to be kept had room.
        """
        took = self._clock() - self._began
        (self._unknown if missed else self._known).append(took)
        if self._unknown and not missed:
            self.seconds += statistics.median(self._unknown) - took
        self._batches += 1
        self._rows += rows
        self._hits += not missed
        whole = self._before >= 0.75 * self.batches_per_epoch
        enough = self._epochs == 1 and whole and self._batches >= max(_ENOUGH, self._before // 4)
        return self._unknown_share(0.6, full) if enough else ""

    def epoch_ends(self, full: bool) -> str:
        """An epoch is over; why the cache is to be switched off, if it is.

        Args:
            full: Not all that was to be kept had room.
        """
        self._epochs += 1
        reason = ""
        if 0 < 0.75 * self._batches <= self._before:  # the epoch before was seen as a whole
            # Batches that were measured are unknown in the second epoch, and with them others in part.
            reason = self._unknown_share(0.6 if self._epochs == 2 else 0.9, full)
            known, unknown = (statistics.median(times or [0.0]) for times in (self._known, self._unknown))
            if min(len(self._known), len(self._unknown)) >= _ENOUGH and known > (1 - _LEAST) * unknown:
                reason = reason or f"a step takes {known * 1000:.0f} ms with it and {unknown * 1000:.0f} ms without"
        self._before, self._batches, self._hits, self._rows = self._batches, 0, 0, 0.0
        return reason

    def _unknown_share(self, least: float, full: bool) -> str:
        hits, rows = self._hits / self._batches, self._rows / self._batches
        if hits >= 0.25 or rows >= least:
            return ""
        why = "random augmentation, padding to another length, or samples that do not come again"
        why = "what the front gives does not fit into cache_gigabytes" if full else why
        return f"it knew {rows:.0%} of the samples and {hits:.0%} of the batches: {why}"
