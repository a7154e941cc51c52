"""Freezer: the engine that freezes layers while a model trains, without a Trainer."""

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any

from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from smartfrz_lightning.engine.engine import Engine
from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.outside import thaw_frozen_here
from smartfrz_lightning.engine.processes import Processes, several_processes
from smartfrz_lightning.engine.shadow import LoopStep, cannot_repeat, loss_of, scales_gradients
from smartfrz_lightning.freezing.wrappers import unwrap
from smartfrz_lightning.layers.layer import check_patterns
from smartfrz_lightning.report.show import timeline_table


class Freezer(Engine):
    """Find the layers of a model in its first training step, ask a method which should stop, and stop them.

    In a training loop of your own, put every batch into ``batch`` and say when an epoch ends; Lightning's Trainer
    does the same through ``FreezingCallback``. All processes of a distributed training do the
    same at the same time. A layer that thaws starts with a fresh optimizer state: that of a frozen layer is dropped.

    Args:
        model: The model as the loop calls it, also in ``DistributedDataParallel``, with ``fully_shard``, or set up by
            Fabric.
        optimizers: One or several.
        method: Any freezing callback, or a ``FreezingMethod`` of your own.
        batches_per_epoch: Batches an epoch.
        total_batches: Batches of the whole run; methods that go by the schedule need it.
        training_step: Gives the loss of a batch. If the loop calls ``training_step`` with what it would call this
            with, ``SmartFreezeCallback`` can try a frozen prefix as it does in a Trainer.
        backward: How the loop differentiates that loss, such as ``fabric.backward``.
        processes: How processes agree; by default those of ``torch.distributed``, if there are any.
        position: Gives, after a batch, the batches and epochs done and the share of the run done, ``None`` if that is
            not known; by default batches are counted.
        schedulers: Learning-rate schedulers; methods that set rates themselves refuse them.
        say: Gets what a method tells the user, besides the report.

    Attributes:
        run: What the method knows of the training.
        timeline: What froze when, and what it saved.

    Raises:
        ValueError: The model has no trainable parameter, or none that an optimizer trains; a pattern of what to
            exclude matches nothing in it; or a number of batches is not above 0.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        method: FreezingMethod,
        batches_per_epoch: float = math.inf,
        total_batches: float = math.inf,
        training_step: Callable[..., Any] | None = None,
        backward: Callable[[Tensor], Any] = Tensor.backward,
        processes: Processes | None = None,
        position: Callable[[], tuple[int, float, float | None]] | None = None,
        schedulers: Sequence[Any] = (),
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        own = unwrap(model)
        if processes is None and own is model:  # of an earlier one; a wrapper could not be told
            thaw_frozen_here(own)
        if not any(parameter.requires_grad for parameter in own.parameters()):
            raise ValueError(
                f"{type(own).__name__} has no trainable parameter: set requires_grad=True on what should train"
            )
        for name, length in (("batches_per_epoch", batches_per_epoch), ("total_batches", total_batches)):
            if not isinstance(length, Real) or not length > 0:
                raise ValueError(f"{name}={length!r}: must be a number above 0, math.inf where it is not known")
        check_patterns(method.exclude, own)
        several = optimizers if isinstance(optimizers, Sequence) else [optimizers]
        plain = [getattr(optimizer, "optimizer", optimizer) for optimizer in several]  # Fabric wraps them
        # In a Trainer, the module may step optimizers of its own.
        held = {parameter for optimizer in plain for group in optimizer.param_groups for parameter in group["params"]}
        if processes is None and plain and held.isdisjoint(own.parameters()):
            raise ValueError(
                f"optimizers: none of them trains a parameter of {type(own).__name__} itself, so that freezing would "
                "stop nothing; build them from model.parameters(), after fully_shard and the like"
            )
        super().__init__(own, plain, method, processes or Processes(model), position or self._counted, say)
        run = self.run
        # NumPy's numbers cannot be in a checkpoint.
        run.batches_per_epoch, run.total_batches = float(batches_per_epoch), float(total_batches)
        run.schedulers = schedulers
        if training_step is not None:
            run.shadow_step = LoopStep(self._model, training_step, backward)
            run.cannot_verify = cannot_repeat(own, plain[0]) if len(plain) == 1 else "there are several optimizers"
            if several_processes():
                run.cannot_verify = "a loop of your own has several processes"
            if any(map(scales_gradients, several)):
                run.cannot_verify = "Fabric scales gradients (16-mixed)"
        method.reset()
        method.prepare(run)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the ``training_step`` that was given.

        Raises:
            ValueError: None was given.
        """
        if not isinstance(self.run.shadow_step, LoopStep):
            raise ValueError(
                "training_step: give Freezer(training_step=...) a function that returns the loss of a batch"
            )
        out = self.run.shadow_step.training_step(*args, **kwargs)
        loss = loss_of(out)
        self.run.loss = None if loss is None else loss.detach().mean()
        return out

    @contextlib.contextmanager
    def batch(self, batch: Any = None) -> Iterator[None]:
        """One training batch: forward, backward, optimizer step.

        Args:
            batch: What the batch consists of; its size is what FLOPs are booked by.
        """
        with self.timeline.timed():
            self.before_batch(batch)
        try:
            yield
        except BaseException:
            self._observer.stop()
            raise
        with self.timeline.timed():
            self.after_batch()

    def thaw(self) -> None:
        """Let every layer train again that this froze."""
        self.change(thaw_now=list(self.run.frozen))

    def report(self, width: int = 120) -> str:
        """The table that a Trainer prints at the end: what froze when and why, and the FLOPs done and saved."""
        text = io.StringIO()
        Console(file=text, width=width).print(timeline_table(self.timeline, type(self.method).__name__))
        return text.getvalue()

    def _counted(self) -> tuple[int, float, float | None]:
        known = self.run.total_batches < math.inf
        progress = min(1.0, self._batches / self.run.total_batches) if known else None
        whole = self.run.batches_per_epoch < math.inf
        return self._batches, self._batches / self.run.batches_per_epoch if whole else 0.0, progress
