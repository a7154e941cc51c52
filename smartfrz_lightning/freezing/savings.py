"""Savings: whether a front cache pays, by the clock."""

import contextlib
import statistics
import time
from collections.abc import Iterator

import torch


class Savings:
    """Seconds that a cache takes, against those that the front would have taken without it.

    What the front takes is measured on batches of which nothing is known (the median): they are computed as without a
    cache. What the cache takes is what it computes of the others, which is dearer by the sample than a whole batch, and
    what it spends on telling samples apart, on keeping, looking up and checking.

    Attributes:
        on_gpu: Whether the clock has to wait for a GPU.
    """

    def __init__(self) -> None:
        self.on_gpu = False
        self._whole: list[float] = []  # seconds a sample of batches that were computed as a whole
        self._least = 0.0  # of a sample, before the front grew
        self._computed = self._spent = 0.0
        self._samples = 0
        self._in_batch = 0.0
        self._busy = False
        self._closed = 0.0  # seconds that were saved with earlier fronts
        self._at_epoch = 0.0

    def clock(self) -> float:
        """Seconds, once a GPU has done all that it was told to do."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """What happens inside would not be done without a cache."""
        start, inside = self.clock(), self._in_batch
        try:
            yield
        finally:
            self._spent += self.clock() - start - (self._in_batch - inside)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, the front is computed, or a part of it for some samples."""
        if self._busy:
            yield
            return
        self._busy = True
        start, spent = self.clock(), self._spent
        try:
            yield
        finally:
            self._busy = False
            self._in_batch += self.clock() - start - (self._spent - spent)

    def batch_done(self, known: int, batch: int) -> None:
        """A batch is over, of which so many samples were known."""
        if not known and self._in_batch:
            self._whole.append(self._in_batch / batch)
        self._samples += batch
        self._computed += self._in_batch
        self._in_batch = 0.0

    def batch_unknown(self) -> None:
        """A batch is over in which nothing was looked up: what was computed, would have been without a cache."""
        self._in_batch = 0.0

    def front_grew(self) -> None:
        """It takes longer from now on; what is carried on from what is kept says too little of how long."""
        self._close_account()
        self._least = self._each
        self._whole.clear()

    def front_shrank(self) -> None:
        """What it took is not known any more."""
        self._close_account()
        self._least = 0.0
        self._whole.clear()

    def _close_account(self) -> None:
        self._closed = self.seconds
        self._samples, self._computed, self._spent = 0, 0.0, 0.0

    @property
    def _each(self) -> float:
        """Seconds of the front for a sample."""
        return max(self._least, statistics.median(self._whole) if self._whole else 0.0)

    @property
    def known(self) -> bool:
        """Whether it is known what the front takes: not where all is found in files of an earlier run."""
        return self._each > 0

    @property
    def seconds(self) -> float:
        """That were saved in all, or lost."""
        return self._closed + (self._samples * self._each - self._computed - self._spent if self.known else 0.0)

    def end_epoch(self) -> float:
        """An epoch is over; returns the seconds that were saved in it."""
        before, self._at_epoch = self._at_epoch, self.seconds
        return self._at_epoch - before
