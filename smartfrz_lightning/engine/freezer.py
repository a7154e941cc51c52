"""Freezer: the engine that freezes layers while a model trains, without a Trainer."""

import contextlib
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from smartfrz_lightning.engine.finding import LayerFinder, check_patterns, pin
from smartfrz_lightning.engine.front import CachedFront
from smartfrz_lightning.engine.method import Decision, FreezingMethod
from smartfrz_lightning.engine.outside import StillFrozen, frozen_here
from smartfrz_lightning.engine.processes import Processes, TorchProcesses
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.engine.state import restore, saved_state
from smartfrz_lightning.engine.stillness import SETTLING, SETTLING_SHARE, Stillness
from smartfrz_lightning.freezing.compiled import allow_recompiling, forget_graphs
from smartfrz_lightning.freezing.freeze import freeze, thaw
from smartfrz_lightning.freezing.lean_backward import LeanBackward, SpareMemory
from smartfrz_lightning.freezing.wrappers import unwrap
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.report.ledger import Ledger
from smartfrz_lightning.report.timeline import Timeline


class Freezer:
    """Find the layers of a model in its first training step, ask a method which should stop, and stop them.

    In a training loop of your own, put every batch into :meth:`batch` and say when an epoch ends; Lightning's Trainer
    does the same through :class:`~smartfrz_lightning.FreezingCallback`. All processes of a distributed training do the
    same at the same time. A layer that thaws starts with a fresh optimizer state: that of a frozen layer is dropped.

    Args:
        model: The model as the loop calls it, also in ``DistributedDataParallel``, with ``fully_shard``, or set up by
            Fabric.
        optimizers: One or several.
        method: Any freezing callback, or a :class:`FreezingMethod` of your own.
        batches_per_epoch: Batches an epoch.
        total_batches: Batches of the whole run; methods that go by the schedule need it.
        processes: How processes agree; by default those of ``torch.distributed``, if there are any.
        position: Gives, after a batch, the batches and epochs done and the share of the run done, ``None`` if that is
            not known; by default batches are counted.
        schedulers: Learning-rate schedulers; methods that set rates themselves refuse them.

    Attributes:
        run: What the method knows of the training.
        timeline: What froze when, and what it saved.

    Raises:
        ValueError: The model has no trainable parameter, or a pattern of what to exclude matches nothing in it.

    Example:
        >>> import torch
        >>> from smartfrz_lightning import IntervalFreezeCallback
        >>> from smartfrz_lightning.engine import Freezer
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> data = torch.rand(10, 4, 8)
        >>> method = IntervalFreezeCallback(flops_reduction=0.2)
        >>> freezer = Freezer(model, optimizer, method, batches_per_epoch=10, total_batches=30)
        >>> for epoch in range(3):
        ...     for x in data:
        ...         with freezer.batch(x):
        ...             optimizer.zero_grad()
        ...             model(x).square().mean().backward()
        ...             optimizer.step()
        ...     freezer.end_epoch()
        >>> freezer.end()
        >>> freezer.run.frozen, round(freezer.timeline.saved, 1)
        (['0', '2'], 0.2)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        method: FreezingMethod,
        batches_per_epoch: float = math.inf,
        total_batches: float = math.inf,
        processes: Processes | None = None,
        position: Callable[[], tuple[int, float, float | None]] | None = None,
        schedulers: Sequence[Any] = (),
    ) -> None:
        self._model = unwrap(model)
        several = optimizers if isinstance(optimizers, Sequence) else [optimizers]
        self._optimizers = [getattr(optimizer, "optimizer", optimizer) for optimizer in several]  # Fabric wraps them
        self.method = method
        self.processes = processes or TorchProcesses(model)
        if not any(parameter.requires_grad for parameter in self._model.parameters()):
            raise ValueError(
                f"{type(self._model).__name__} has no trainable parameter: set requires_grad=True on what should train"
            )
        check_patterns(method.exclude, self._model)
        self._position = position or self._counted
        self._batches = 0
        self._hooks: list[Any] = []
        self._clear(Timeline())
        self.run.batches_per_epoch, self.run.total_batches = batches_per_epoch, total_batches
        self.run.schedulers = schedulers
        method.reset()
        method.prepare(self.run)

    def _clear(self, timeline: Timeline) -> None:
        old = getattr(self, "run", None)
        self.timeline = timeline
        self.ledger = Ledger(timeline)
        self.run = TrainingRun(
            model=self._model,
            optimizers=self._optimizers,
            schedulers=old.schedulers if old else (),
            timeline=timeline,
            batches_per_epoch=old.batches_per_epoch if old else math.inf,
            total_batches=old.total_batches if old else math.inf,
            is_first_process=self.processes.is_first,
            agree=self.processes.agree,
        )
        self._finder = LayerFinder(self._model, self.method.exclude, timeline.layers)
        self._still = Stillness(self._model)
        self._outside = StillFrozen(self._model)
        self._lean, self._spare_memory = LeanBackward(self._model), SpareMemory(self._model)
        self._front = CachedFront(self._model, self.method)
        self._stepped: set[int] = set()  # optimizers that stepped in this batch
        self._seen: set[int] = set()  # optimizers whose gradients the method has seen for the step that comes
        self._escaped: dict[str, None] = {}
        self._checked_epoch = -1
        self._check_waits = False
        self._passes = 0  # backward passes of this batch
        self._turned_up = False  # a layer trains that the first batch did not use
        self._started = False

    @property
    def layers(self) -> list[Layer]:
        """The layers in forward order; empty until the first training step was watched."""
        return self.run.layers

    # --- one training, in the order in which it happens

    def start(
        self,
        optimizers: Sequence[Optimizer] | None = None,
        batches_per_epoch: float | None = None,
        total_batches: float | None = None,
    ) -> None:
        """Training begins or goes on. The first batch does this by itself.

        Args:
            optimizers: If they are others by now.
            batches_per_epoch: If it is known by now.
            total_batches: If it is known by now.
        """
        self._started = True
        run = self.run
        run.optimizers = self._optimizers = list(self._optimizers if optimizers is None else optimizers)
        run.batches_per_epoch = run.batches_per_epoch if batches_per_epoch is None else batches_per_epoch
        run.total_batches = run.total_batches if total_batches is None else total_batches
        for optimizer in self._optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_optimizer_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_optimizer_step))
        if self.run.frozen:
            freeze(self._model, self.run.frozen_layers, self._optimizers)
        self._watch_frozen()
        self._front.start(self.run)
        run.begun_before |= not self.timeline.steps and any(map(_has_stepped, self._optimizers))
        self.method.start(self.run)
        allow_recompiling(self._patterns)
        self.ledger.start_training()

    @contextlib.contextmanager
    def batch(self, batch: Any = None) -> Iterator[None]:
        """One training batch: forward, backward, optimizer step.

        Args:
            batch: What the batch consists of; its size is what FLOPs are booked by.
        """
        with self.ledger.timed():
            self.before_batch()
        try:
            yield
        except BaseException:
            self.stop_watching()
            raise
        with self.ledger.timed():
            self.after_batch(batch)

    def before_batch(self, train_statistics: bool = False) -> None:
        """A training batch is about to begin.

        Args:
            train_statistics: Nothing is trained in this batch but the running statistics, those of frozen layers too.
        """
        if not self._started:
            self.start()
        self.stop_watching()
        if train_statistics:
            self._still.let_go()
            return
        self._still.hold()
        self.method.before_batch(self.run)
        self._finder.before_batch()
        self.ledger.before_batch(self._model)
        self._front.before_batch(self.run, self._finder.watching or self.ledger.measuring or self._still.settling)
        if self.run.frozen and not self._spare_memory():
            self._lean.open()

    def before_backward(self, *losses: Tensor, only: bool = False) -> None:
        """These are about to be differentiated; in a loop of your own that is noticed by itself.

        Args:
            losses: The losses.
            only: It is the only backward pass of this batch: what watches the forward pass ends.
        """
        self._finder.before_backward(*losses)
        if only:
            with self.ledger.interrupted_before_backward(losses[0].device):
                self._finder.stop()

    def after_backward(self) -> None:
        """A backward pass is over, and any other of this batch would be one more of the same kind, as LBFGS does."""
        self._passes += 1
        self.ledger.after_backward()

    def gradients_ready(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step; the gradients are complete."""
        if not self.timeline.layers:
            self.method.first_gradients(self.run, optimizer)
            return
        if escaped := self._outside.hold():
            self._escaped |= dict.fromkeys(escaped)
        if self._finder.unused and self.run.is_first_process and not self._turned_up:
            self._turned_up = self._finder.unused_layer_trains()
        self.method.gradients_ready(self.run, optimizer)

    def after_batch(self, batch: Any = None, stepped: bool = False) -> bool:
        """A training batch is over; returns whether it was a step and layers are known.

        Args:
            batch: What it consisted of.
            stepped: An optimizer stepped, or would have but for an overflow; it is noticed by itself otherwise.
        """
        self._batches += 1
        self._lean.close()
        covered, known = self._front.after_batch(self.run)
        self._still.batch_done(self.processes.agree)
        self.ledger.after_backward()
        stepped = stepped or bool(self._stepped)
        self._stepped.clear()
        self._seen.clear()
        found = self._finder.watching and self._finder.after_batch(self.processes.agree)
        if found:
            self.timeline.layers, self._turned_up = self._finder.layers, False
        passes, self._passes = max(1, self._passes), 0
        if not self.timeline.layers:
            self.ledger.stop_measuring()
            return False
        self.ledger.after_batch(batch, passes)
        self.ledger.book_skipped(covered, known, batch)
        if found:
            self.method.layers_found(self.run)
        if not stepped:
            return False
        self._advance()
        self.method.step_done(self.run)
        if self._escaped:
            self._give_up(list(self._escaped))
        if (self._check_waits and not self._finder.look_again) or self.method.check_due(self.run):
            self._check()
        return True

    def end_epoch(self, epoch: int | None = None, last: bool = False) -> None:
        """An epoch is over.

        Args:
            epoch: Its number from 0 on; counted by itself otherwise. An epoch that was checked before, as after a
                resume, is not checked again.
            last: Whether training ends with it: nothing is left to save then.
        """
        self.stop_watching()
        number = self._checked_epoch + 1 if epoch is None else epoch
        every = self.method.every_n_epochs
        if self.run.layers and number > self._checked_epoch:
            self._checked_epoch = number
            self._front.end_epoch(self.run, self.processes.agree)
            if every and (number + 1) % every == 0 and not last:
                self._check()

    def end(self) -> None:
        """Training is over, or broke off: everything that watches it goes. May be called more than once."""
        self.stop_watching()
        self.ledger.stop()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._still.end()
        self._front.end()
        self.method.end(self.run)
        self._started = False

    def stop_watching(self) -> None:
        """What watches a single batch goes: a batch that was skipped or broke off ends here."""
        self._lean.close()
        self._front.after_batch(self.run)
        self.ledger.stop_measuring()
        self._finder.stop()

    # --- decide and apply

    def change(
        self,
        freeze_now: Collection[str] | Mapping[str, float | None] = (),
        thaw_now: Collection[str] = (),
        held: bool = False,
    ) -> None:
        """Let layers stop or train again, from the next batch on. Call it on every process, between two batches.

        Args:
            freeze_now: Names of layers, or a mapping to the confidence in each. The last thing that an optimizer trains
                is left to it.
            thaw_now: Names of frozen layers. They start with a fresh optimizer state.
            held: What freezes is as it was before training: its statistics need not settle.

        Raises:
            ValueError: There is no such layer, or it always trains.
        """
        decision = Decision.of(Decision(freeze_now, thaw_now))
        self._refuse_unknown(decision, "change")
        frozen = set(self.run.frozen)
        thawed = [layer for layer in self.run.layers if layer.name in decision.thaw and layer.name in frozen]
        chosen = [layer for layer in self.run.active if layer.name in decision.freeze]
        stopped = self._leave_one_training(chosen, thawed)
        if not stopped and not thawed:
            return
        self.processes.before_change()
        thaw(self._model, thawed)
        freeze(self._model, stopped, self._optimizers)
        self.processes.after_change()
        sure: Mapping[str, float | None] = dict(decision.freeze)  # type: ignore[arg-type]
        names = [layer.name for layer in thawed]
        self.ledger.change({layer.name: sure[layer.name] for layer in stopped}, names, self.run.epoch)
        self._watch_frozen()
        # What is frozen before it trained has the statistics that belong to its weights.
        if self.timeline.steps > 1 and not held:
            batches = int(min(SETTLING, self.run.total_batches * SETTLING_SHARE))
            if self._batches + batches <= self.run.total_batches:  # else there is no time for it
                self._still.settle([name for layer in stopped for name in layer.stateful], batches)
        forget_graphs()
        self.ledger.start_training()  # forgetting stops the count of compilations
        allow_recompiling(self._patterns)
        self.method.changed(self.run, [layer.name for layer in stopped], names)

    def _check(self) -> None:
        if self._finder.look_again:
            self._check_waits = True
            return
        self._check_waits = False
        if not self.run.active and not (self.method.thaws and self.run.frozen):
            return
        answer = None
        if self.run.is_first_process and not self._turned_up:
            answer = Decision.of(self.method.select(self.run))
            self._refuse_unknown(answer, "select")
        answer = self.processes.agree(answer)
        if answer is None:  # how it lies among the others, the next batch shows
            self._finder.look_again, self._check_waits, self._turned_up = True, True, False
            return
        self.change(answer.freeze, answer.thaw, held=answer.held)

    def _refuse_unknown(self, decision: Decision, where: str) -> None:
        unknown = {*decision.freeze, *decision.thaw} - {layer.name for layer in self.run.layers}
        if unknown:
            raise ValueError(
                f"{type(self.method).__name__}.{where} returned {sorted(unknown)}, which are no layers' names"
            )

    def _leave_one_training(self, layers: Sequence[Layer], thawed: Sequence[Layer]) -> list[Layer]:
        """Take back the last layer of an optimizer that would have nothing left to train: a GradScaler would fail."""
        layers = list(layers)
        fresh = {id(self._model.get_parameter(name)) for layer in thawed for name in layer.parameters}
        for optimizer in self._optimizers:
            held = [p for group in optimizer.param_groups for p in group["params"]]
            training = {id(p) for p in held if p.requires_grad or id(p) in fresh}
            owned = {layer.name: {id(self._model.get_parameter(name)) for name in layer.parameters} for layer in layers}
            if training and training <= set().union(*owned.values()):
                last = next((layer for layer in reversed(layers) if owned[layer.name] & training), None)
                layers = [layer for layer in layers if layer is not last]
        return layers

    def _give_up(self, names: Sequence[str]) -> None:
        """Layers that the user's code thawed train again, and are left alone from now on."""
        self._escaped.clear()
        names = [name for name in names if name in self.run.frozen]
        if not names:
            return
        warnings.warn(
            f"something set requires_grad=True on {len(names)} layers that {type(self.method).__name__} had frozen "
            f"({', '.join(names[:3])}): they train again and are left alone from now on. Name them in exclude, or do "
            "not set requires_grad on parameters that do not have it",
            stacklevel=2,
        )
        self._pin([replace(layer, pinned="thawed") if layer.name in names else layer for layer in self.layers])
        self.change(thaw_now=names)

    def _pin(self, layers: Sequence[Layer]) -> None:
        self.timeline.layers = self._finder.layers = list(layers)

    def _watch_frozen(self) -> None:
        frozen = self.run.frozen_layers
        self._still.watch(frozen)
        self._outside = StillFrozen(self._model, frozen)
        here = frozen_here(self._model)
        here.clear()
        here.update({layer.name: layer for layer in frozen})
        self._lean.watch()
        self._front.changed(self.run)

    @property
    def _patterns(self) -> int:
        """At most so many patterns of what trains has freezing brought to a function that blocks share.

        A frozen layer changes the pattern of its block, and the block behind the last one gets an input without
        gradient; BatchNorms go to eval mode a little later.
        """
        events = self.timeline.events
        return len(events) + 2 * len({event.step for event in events})

    # --- how far the training is

    def _counted(self) -> tuple[int, float, float | None]:
        known = self.run.total_batches < math.inf
        progress = min(1.0, self._batches / self.run.total_batches) if known else None
        whole = self.run.batches_per_epoch < math.inf
        return self._batches, self._batches / self.run.batches_per_epoch if whole else 0.0, progress

    def _advance(self) -> None:
        run = self.run
        run.steps += 1
        run.timeline.steps += 1
        run.batches_before = run.batches
        run.batches, run.epoch, run.progress = self._position()

    def _before_optimizer_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first is the optimizer itself
        if closure is None and id(optimizer) not in self._seen:  # with a closure, there are no gradients yet
            self.gradients_ready(optimizer)
        self._seen.discard(id(optimizer))

    def note_gradients(self, optimizer: Optimizer) -> None:
        """:meth:`gradients_ready`, told by a loop that knows the moment better than the optimizer does."""
        self._seen.add(id(optimizer))
        self.gradients_ready(optimizer)

    def _after_optimizer_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self._stepped.add(id(optimizer))

    # --- save and resume

    def state_dict(self) -> dict[str, Any]:
        """The timeline, the counters and the method's own state: plain values, and tensors that no later step moves."""
        state = saved_state(self.ledger, self.run, self.method, self._checked_epoch, self._batches)
        return {**state, "settling": self._still.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state: what was frozen freezes, what froze later in this very model thaws.

        Raises:
            ValueError: It is of another version, model, window or sample size.
        """
        timeline = restore(state, self._model)
        later = [layer for name, layer in frozen_here(self._model).items() if name not in timeline.frozen]
        self.method.reset()
        started = self._started
        self._clear(timeline)
        self._started = started
        counters = state["counters"]
        run = self.run
        run.steps, run.batches, run.batches_before = counters["steps"], counters["batches"], counters["batches_before"]
        run.epoch, run.progress = counters["epoch"], counters["progress"]
        self._checked_epoch, self._batches = counters["checked_epoch"], counters["counted"]
        self._pin(pin(self.layers, self.method.exclude))
        self.method.prepare(run)
        if timeline.frozen or later:  # the wrapper was built for a model in which others trained
            self.processes.before_change()
            thaw(self._model, later)
            freeze(self._model, run.frozen_layers, self._optimizers)
            self.processes.after_change()
            forget_graphs()
        self._watch_frozen()
        self._still.load_state_dict(state["settling"], run.frozen_layers)
        if run.layers:
            self.method.load_method_state(state["method"], run)
        excluded = [layer.name for layer in run.frozen_layers if layer.pinned == "excluded"]
        if excluded:  # since the state was saved
            self.change(thaw_now=excluded)

    @contextlib.contextmanager
    def restoring(self, state: dict[str, Any]) -> Iterator[None]:
        """:meth:`load_state_dict`, then the time in which an optimizer takes its state from the same checkpoint.

        What thawed after the last step has no optimizer state yet; FSDP2 wants one of all that trains.
        """
        self.load_state_dict(state)
        last = {event.layer: event for event in self.timeline.events}
        thawed = {name for name, event in last.items() if (event.kind, event.step) == ("thaw", self.timeline.steps)}
        fresh = [layer for layer in self.layers if layer.name in thawed]
        freeze(self._model, fresh)
        try:
            yield
        finally:
            thaw(self._model, fresh)

    def new_run(self) -> None:
        """What comes is a run of its own, of the same model: its length counts from here, what is frozen stays so."""
        self.run.steps = self.run.batches = self.run.batches_before = self._batches = 0
        self.run.epoch, self.run.progress = 0.0, None
        self._checked_epoch = -1


def _has_stepped(optimizer: Optimizer) -> bool:
    """Whether it has, as far as its state shows; some begin with a state of zeros."""

    def moved(value: Any) -> bool:
        return bool(value.any()) if isinstance(value, Tensor) else isinstance(value, int | float) and value > 0

    return any(moved(value) for state in optimizer.state.values() for value in state.values())
