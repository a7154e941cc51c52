"""Work that several processes share."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from typing import TypeVar

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
        jobs: Number of processes; they share the threads of PyTorch.

    Yields:
        Each item with what the function returned or raised, as they end.

    Raises:
        ValueError: ``jobs`` is less than 1.

    Example:
        >>> from smartfrz_lightning.private.workers import in_processes
        >>> [(item, type(done).__name__) for item, done in in_processes(int, ["4", "x"], jobs=1)]
        [('4', 'int'), ('x', 'ValueError')]
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: must be at least 1")
    if jobs == 1:
        for item in items:
            if item is None:
                return
            try:
                yield item, function(item)
            except Exception as error:
                yield item, error
        return
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        running: dict[Future[Done], Item] = {}
        source = iter(items)
        while True:
            while len(running) < jobs and (item := next(source, None)) is not None:
                running[pool.submit(function, item)] = item
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    done: Done | Exception = future.result()
                except Exception as error:
                    done = error
                yield running.pop(future), done
