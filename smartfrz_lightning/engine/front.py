"""CachedFront: the front cache of a training, as the engine uses it."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from smartfrz_lightning.cache.cache_use import ENDED, CacheUse
from smartfrz_lightning.cache.front_cache import FrontCache
from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.run import TrainingRun


class CachedFront:
    """Opens the front cache for the training batches in which it may be used, and says what it did.

    Args:
        model: The model.
        method: Says whether there is to be a cache.
    """

    def __init__(self, model: nn.Module, method: FreezingMethod) -> None:
        self._model, self._method = model, method
        self.cache: FrontCache | None = None
        self.use: CacheUse | None = None
        self._told = self._warned = False
        self._parameters = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}

    def start(self, run: TrainingRun) -> None:
        """Training begins or goes on."""
        method = self._method
        if not method.cache_front:
            return
        folder = method.cache_front if isinstance(method.cache_front, str) else None
        dtype = getattr(torch, method.cache_dtype) if method.cache_dtype else None
        self.cache = FrontCache(self._model, method.cache_gigabytes, folder, dtype, self.use)
        self.cache.pays.batches_per_epoch = run.batches_per_epoch
        self.use, self._warned = self.cache.use, False
        if any(isinstance(parameter, DTensor) for parameter in self._model.parameters()):
            self.cache.stop("parameters are sharded (FSDP)")
        elif run.total_batches <= run.batches_per_epoch < math.inf:
            self.cache.stop("in a run of a single epoch no sample comes again")
        self._say(run)

    def changed(self, run: TrainingRun) -> None:
        """Layers froze, or train again."""
        if self.cache is not None:
            self.cache.watch()

    def before_batch(self, run: TrainingRun, watched: bool) -> None:
        """A training batch begins.

        Args:
            run: The training.
            watched: The batch is measured, or its statistics are: everything is to be done in it.
        """
        if self.cache is not None and run.frozen and not watched:
            self.cache.open()

    def after_batch(self, run: TrainingRun) -> list[str]:
        """The batch is over: the layers whose forward pass was not run for it."""
        skipped = tuple(f"{name}." for name in self.cache.close()) if self.cache is not None else ()
        self._say(run)
        if not skipped:
            return []
        used = {
            parameter for name, parameter in self._parameters.items() if not name.startswith(skipped)
        }  # tied ones too
        return [
            layer.name for layer in run.layers if used.isdisjoint(self._parameters[name] for name in layer.parameters)
        ]

    def end_epoch(self, run: TrainingRun, agree: Callable[[Any], Any]) -> None:
        """An epoch is over."""
        if self.cache is None:
            return
        self.cache.end_epoch()
        use = self.cache.use
        if not self._told and (use.ends or use.problem):
            self._told = True
            run.say("cache_front: " + "; ".join(filter(None, [use.ends and f"not kept: {use.ends}", use.problem])))
        stopped = agree(use.stopped)
        if stopped and self.cache.on:
            self.cache.stop(stopped)
        self._say(run)

    def end(self) -> None:
        """Training ended or was interrupted."""
        if self.cache is not None:
            self.cache.stop()
            self.cache = None

    def _say(self, run: TrainingRun) -> None:
        reason = self.use.stopped if self.use is not None else ""
        if reason and reason != ENDED and not self._warned and run.is_first_process:
            self._warned = True
            warnings.warn(f"the cache of the frozen front is switched off: {reason}", stacklevel=2)
