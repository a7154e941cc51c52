"""What freezing needs under ``torch.compile``: eager measuring, room for recompiling, and its cost."""

import contextlib
import time
from typing import Any

import torch
from torch import nn
from torch._dynamo.callback import callback_handler


def is_compiled(model: nn.Module) -> bool:
    """Whether a module or a part of it was compiled, in place, as a wrapper or as a whole ``LightningModule``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.compiled import is_compiled
        >>> compiled = torch.compile(nn.Linear(2, 2), backend="eager")
        >>> is_compiled(nn.Linear(2, 2)), is_compiled(nn.Sequential(compiled, nn.ReLU()))
        (False, True)
    """
    whole = getattr(model, "_compiler_ctx", None) is not None
    return whole or any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in model.modules())


def eager(model: nn.Module) -> contextlib.AbstractContextManager:
    """Run compiled modules without their compiled code, in which no operation can be seen.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.compiled import eager
        >>> from smartfrz_lightning.cost import StepFlopCounter
        >>> net = torch.compile(nn.Linear(2, 3), backend="eager")
        >>> with eager(net), StepFlopCounter(net) as counter:
        ...     out = net(torch.zeros(4, 2))
        >>> counter.flops.forward
        48
    """
    return torch.compiler.set_stance("force_eager") if is_compiled(model) else contextlib.nullcontext()


def allow_recompiling(layers: int) -> None:
    """Make room for the graphs that freezing so many layers brings, as past its limit PyTorch runs eager.

    A compiled function is traced anew for every pattern of what trains in it. Blocks may share one function: each
    frozen layer changes the pattern of its block, and the block behind the last one gets an input without gradient;
    all that once for training and once for validation.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.compiled import allow_recompiling
        >>> with torch._dynamo.config.patch(cache_size_limit=8, accumulated_cache_size_limit=256):
        ...     allow_recompiling(layers=3)
        ...     torch._dynamo.config.cache_size_limit, torch._dynamo.config.accumulated_cache_size_limit
        (16, 264)
    """
    config: Any = torch._dynamo.config
    for name in ("cache_size_limit", "accumulated_cache_size_limit"):  # the names that all versions know
        setattr(config, name, getattr(config, name) + 2 * (layers + 1))


class CompileClock:
    """Counts what is compiled while it runs, and the seconds that takes.

    Example:
        >>> from smartfrz_lightning.compiled import CompileClock
        >>> clock = CompileClock()
        >>> clock.start()
        >>> clock.stop()
        >>> clock.take()
        (0, 0.0)
    """

    def __init__(self) -> None:
        self._count, self._seconds = 0, 0.0
        self._began = 0.0
        self._running = False

    def start(self) -> None:
        """Listen to the compiler."""
        if not self._running:
            callback_handler.register_start_callback(self._begin)
            callback_handler.register_end_callback(self._end)
        self._running = True

    def stop(self) -> None:
        """Listen no more."""
        if self._running:
            with contextlib.suppress(ValueError):  # somebody cleared the lists
                callback_handler.remove_start_callback(self._begin)
                callback_handler.remove_end_callback(self._end)
        self._running = False

    def take(self) -> tuple[int, float]:
        """Compilations and their seconds since this was asked last."""
        taken = self._count, self._seconds
        self._count, self._seconds = 0, 0.0
        return taken

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self._count += 1
        self._seconds += time.perf_counter() - self._began
