"""Pays: whether a front cache saves time, by two medians."""

import contextlib
import math
import statistics
import time
from collections.abc import Iterator

import torch

_LEAST = 0.03  # share of a step that a cache is to save
_ENOUGH = 10  # steps of either kind whose medians can be compared


class Pays:
    """Seconds of steps in which everything was known, and of those in which nothing was.

    Attributes:
        batches_per_epoch: ``inf`` if that is not known.
    """

    def __init__(self) -> None:
        self.batches_per_epoch = math.inf
        self._known: list[float] = []
        self._unknown: list[float] = []
        self._closed = self._lost = self._began = self._spent = 0.0
        self._same_front = self._before = self._batches = self._hits = 0
        self._rows = 0.0

    @staticmethod
    def clock(device: torch.device, exact: bool) -> float:
        """Seconds; exact ones once a GPU has done all that it was told to do."""
        if exact and device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """What happens inside would not be done without a cache."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent += time.perf_counter() - start

    def front_changed(self) -> None:
        """Steps take another time from now on."""
        self._closed = self.seconds
        self._known.clear()
        self._unknown.clear()
        self._lost = 0.0
        self._same_front = self._before = self._batches = self._hits = 0
        self._rows = 0.0

    def batch_begins(self) -> None:
        """A batch begins."""
        self._began, self._spent = time.perf_counter(), 0.0

    def batch_ends(self, hits: int, misses: int, known: float) -> None:
        """A batch is over.

        Args:
            hits: Lookups that found what they looked for.
            misses: Those that did not.
            known: Share of the samples that were known.
        """
        if not hits and not misses:
            return
        took = time.perf_counter() - self._began
        self._batches += 1
        self._rows += known
        self._hits += bool(hits and not misses)
        self._lost += self._spent
        if not misses:
            self._known.append(took)
            self._lost -= self._spent  # it is a part of what the step took
        elif not hits:
            self._unknown.append(took - self._spent)

    @property
    def seconds(self) -> float:
        """That were saved in all, or lost."""
        if not self._unknown:
            return self._closed - self._lost
        plain = statistics.median(self._unknown)
        return self._closed + sum(plain - took for took in self._known) - self._lost

    def unknown_again(self, full: bool) -> str:
        """A batch is over; why there is no sense in going on, if samples do not come again in the second epoch.

        Args:
            full: Not all that was to be kept had room.
        """
        whole = self._before >= 0.75 * self.batches_per_epoch
        if self._same_front != 1 or not whole or self._batches < max(_ENOUGH, self._before // 4):
            return ""
        return self._unknown_share(self._batches, self._hits, self._rows, 0.6, full)

    @staticmethod
    def _unknown_share(batches: int, hits: int, rows: float, least: float, full: bool) -> str:
        if hits >= 0.25 * batches or rows >= least * batches:
            return ""
        why = "random augmentation, padding to another length, or samples that do not come again"
        why = "what the front gives does not fit into cache_gigabytes" if full else why
        return f"it knew {rows / batches:.0%} of the samples and {hits / batches:.0%} of the batches: {why}"

    def reason_to_stop(self, full: bool) -> str:
        """An epoch is over; why the cache is to be switched off, if it is.

        Args:
            full: Not all that was to be kept had room.
        """
        self._same_front += 1
        batches, hits, rows = self._batches, self._hits, self._rows
        before, self._before = self._before, batches
        self._batches, self._hits, self._rows = 0, 0, 0.0
        if self._same_front < 2 or not 0 < 0.75 * batches <= before:  # it saw a part of an epoch
            return ""
        # Batches that were measured or checked are unknown in the second epoch, and with them others in part.
        if reason := self._unknown_share(batches, hits, rows, 0.6 if self._same_front == 2 else 0.9, full):
            return reason
        if min(len(self._known), len(self._unknown)) >= _ENOUGH:
            known, unknown = statistics.median(self._known), statistics.median(self._unknown)
            if known > (1 - _LEAST) * unknown:
                return f"a step takes {known * 1000:.0f} ms with it and {unknown * 1000:.0f} ms without"
        return ""
