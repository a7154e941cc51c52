"""What freezing needs under ``torch.compile``: eager measuring, recompiling and room for it, and its cost."""

import contextlib
import time
from typing import Any

import torch

from smartfrz_lightning.private.pytorch import compile_callbacks, compile_config, torch_is_older


def eager() -> contextlib.AbstractContextManager:
    """Run what is compiled without its compiled code, in which no operation can be seen."""
    return torch.compiler.set_stance("force_eager")


_DEFAULT_LIMITS: dict[str, int] = {}


def allow_recompiling(patterns: int) -> None:
    """Make room for the graphs that freezing brings, as past its limit PyTorch runs eager without a word.

    A compiled function is traced anew for every pattern of what trains in it, once for training and once for
    validation. The limits stay: after the fit, the graphs are still there.

    Args:
        patterns: How many patterns freezing has brought to one function at most.
    """
    config = compile_config()
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        default = _DEFAULT_LIMITS.setdefault(name, getattr(config, name))
        setattr(config, name, max(getattr(config, name), default + 2 * patterns))


def forget_graphs() -> None:
    """Make compiled functions notice a freeze where PyTorch does not: before 2.13 their guards overlook parameters.

    Their gradients were right all the same, but computed for what is frozen too.
    """
    if torch_is_older(2, 13):
        torch.compiler.reset()


class CompileClock:
    """Counts what is compiled while it runs, and the seconds that takes."""

    def __init__(self) -> None:
        self._count, self._seconds = 0, 0.0
        self._began = 0.0

    def start(self) -> None:
        """Listen to the compiler; does nothing if it listens already."""
        if self._begin not in compile_callbacks.start_callbacks:  # torch.compiler.reset clears the lists
            compile_callbacks.register_start_callback(self._begin)
            compile_callbacks.register_end_callback(self._end)

    def stop(self) -> None:
        """Listen no more."""
        if self._begin in compile_callbacks.start_callbacks:
            compile_callbacks.remove_start_callback(self._begin)
            compile_callbacks.remove_end_callback(self._end)

    def take(self) -> tuple[int, float]:
        """Compilations and their seconds since this was asked last."""
        taken = self._count, self._seconds
        self._count, self._seconds = 0, 0.0
        return taken

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *about: Any) -> None:
        # A backward graph that is compiled later belongs to its forward. Older versions of PyTorch say nothing here.
        self._count += not about or about[0].callback_trigger.name == "DYNAMO"
        self._seconds += time.perf_counter() - self._began
