"""Work that several processes share."""

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Done = TypeVar("Done")


def in_processes(
    function: Callable[[Item], Done], items: Iterable[Item | None], jobs: int
) -> Iterator[tuple[Item, Done | Exception]]:
    """Call a function for each item, several at a time, each in a process of its own that does many of them.

    Args:
        function: Of a module, so that a new process can import it. With one job it is called in this process.
        items: Asked for when a process is free, so that an iterator can decide late what comes next; ``None`` says that
            nothing is due before one of those under way ends.
        jobs: Number of processes; they share the threads of PyTorch. They end when this one does.

    Yields:
        Each item with what the function returned or raised, as they end; what it raised in another process as a
        ``RuntimeError`` with its text. Where a process dies, those beside it are begun again, one by one.

    Raises:
        ValueError: ``jobs`` is less than 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: must be at least 1")
    if jobs == 1:
        for item in items:
            if item is None:
                return
            try:
                done: Done | Exception = function(item)
            except Exception as error:
                done = error
            yield item, done
            del done  # a traceback holds what was trained
        return
    pool, source = _Pool(jobs), iter(items)
    try:
        running: dict[Future[Any], Item] = {}
        while True:
            while len(running) < jobs and (item := next(source, None)) is not None:
                running[pool.submit(function, item)] = item
            if not running:
                return
            ended = wait(running, return_when=FIRST_COMPLETED).done
            for future in ended:
                if not isinstance(future.exception(), BrokenProcessPool):
                    yield running.pop(future), _outcome(future)
            if any(isinstance(future.exception(), BrokenProcessPool) for future in ended):
                again, running = list(running.values()), {}
                for item in again:
                    yield item, pool.alone(function, item)
    finally:
        pool.close()


class _Pool:
    def __init__(self, jobs: int) -> None:
        self._jobs, self._threads = jobs, max(1, torch.get_num_threads() // jobs)
        self._open()

    def _open(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
        self._pool = ProcessPoolExecutor(self._jobs, context, _begin, (self._threads,))

    def submit(self, function: Callable[[Any], Any], item: Any) -> Future[Any]:
        try:
            return self._pool.submit(_call, function, item)
        except BrokenProcessPool:  # one that was idle has died
            self._renew()
            return self._pool.submit(_call, function, item)

    def alone(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Call a function when nothing else runs that could kill its process."""
        self._renew()
        return _outcome(self._pool.submit(_call, function, item))

    def _renew(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)  # nobody would take the result

    threading.Thread(target=watch, daemon=True).start()


def _call(function: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
    """What was returned, or the texts of what was raised: not every exception can be sent."""
    try:
        return True, function(item)
    except Exception as error:
        return False, (f"{type(error).__name__}: {error}", traceback.format_exc())


def _outcome(future: Future[Any]) -> Any:
    try:
        fine, value = future.result()
    except BrokenProcessPool:
        return RuntimeError("its process died: the machine may have run out of memory")
    except Exception as error:  # what it returned cannot be sent
        return error
    if fine:
        return value
    error = RuntimeError(value[0])
    error.__cause__ = RuntimeError(value[1])  # the traceback in that process
    return error
