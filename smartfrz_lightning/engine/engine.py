"""Engine: what happens in a freezing training, event by event."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.outside import frozen_here
from smartfrz_lightning.engine.parts import Parts
from smartfrz_lightning.engine.processes import Processes
from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.engine.state import restore
from smartfrz_lightning.engine.steps import StepHooks, has_stepped
from smartfrz_lightning.freezing.compiled import allow_recompiling
from smartfrz_lightning.freezing.freeze import freeze, thaw
from smartfrz_lightning.layers.excluding import pin
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.report.timeline import Timeline


class Engine:
    """Pass the events of a training on to the parts that observe, decide and freeze.

    ``Freezer`` is the one for a loop of your own; callbacks of a Trainer use it
    too.

    Attributes:
        run: What the method knows of the training.
        timeline: What froze when, and what it saved.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        method: FreezingMethod,
        processes: Processes,
        position: Callable[[], tuple[int, float, float | None]],
        say: Callable[[str], None],
    ) -> None:
        self._model, self._optimizers = model, list(optimizers)
        self.method, self.processes = method, processes
        self._position, self._say = position, say
        self._batches = 0
        self._steps = StepHooks(self.gradients_ready, self._optimizer_stepped)
        self._take(Timeline(), None)

    def _take(self, timeline: Timeline, before: TrainingRun | None) -> None:
        """Begin with what a timeline says, in the loop of the run before."""
        self.timeline = timeline
        parts = Parts(self._model, self._optimizers, self.method, self.processes, self._say, timeline, before)
        self._parts, self.run, self.ledger = parts, parts.run, parts.ledger
        self.frozen, self._observer, self._decider = parts.frozen, parts.observer, parts.decider
        self._checked_epoch = -1
        self._passes = 0  # backward passes of this batch
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
        """Training begins or goes on. The first batch does this by itself."""
        self._started = True
        run = self.run
        run.optimizers = self._optimizers = list(self._optimizers if optimizers is None else optimizers)
        run.batches_per_epoch = run.batches_per_epoch if batches_per_epoch is None else batches_per_epoch
        run.total_batches = run.total_batches if total_batches is None else total_batches
        self._steps.register(self._optimizers)
        self.frozen.start()
        run.begun_before |= not run.global_steps and any(map(has_stepped, self._optimizers))
        self.method.start(run)
        allow_recompiling(self.ledger.patterns)

    def before_batch(self, batch: Any = None, train_statistics: bool = False) -> None:
        """A training batch is about to begin.

        Args:
            batch: What it consists of.
            train_statistics: Nothing is trained in this batch but the running statistics, those of frozen layers too.
        """
        if not self._started:
            self.start()
        self.stop_watching()
        self.run.loss = None
        if train_statistics:
            self.frozen.norms.release()
            return
        self.frozen.norms.keep_still()
        self.method.before_batch(self.run)
        self._observer.before_batch(batch, find=not self.run.layers)

    def before_backward(self, *losses: Tensor, only: bool = False) -> None:
        """These are about to be differentiated; in a loop of your own that is noticed by itself.

        Args:
            losses: The losses.
            only: It is the only backward pass of this batch: what watches the forward pass ends.
        """
        self.run.loss = losses[0].detach().mean() if losses else None
        self._observer.before_backward(*losses, only=only)

    def after_backward(self) -> None:
        """A backward pass is over, and any other of this batch would be one more of the same kind, as LBFGS does."""
        self._passes += 1

    def gradients_ready(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step; the gradients are complete."""
        self._find(over=False)
        if not self.run.layers:
            return
        self.run.latest_rates = self.run.rates
        self.frozen.gradients_ready()
        self.method.gradients_ready(self.run, optimizer)

    def note_gradients(self, optimizer: Optimizer) -> None:
        """``gradients_ready``, told by a loop that knows the moment better than the optimizer does."""
        self._steps.seen(optimizer)
        self.gradients_ready(optimizer)

    def _optimizer_stepped(self, optimizer: Optimizer) -> None:
        if self.run.layers:
            self.method.optimizer_stepped(self.run, optimizer)

    def _find(self, over: bool = True) -> None:
        if found := self._observer.find(self.processes.agree, over):
            self._decider.pin(pin(found, self.method.exclude))
            self.method.layers_found(self.run)

    def after_batch(self, stepped: bool = False) -> bool:
        """A training batch is over; returns whether it was a step and layers are known.

        Args:
            stepped: An optimizer stepped, or would have except for an overflow; it is noticed by itself otherwise.
        """
        self._batches += 1
        self.frozen.norms.batch_done(self.processes.agree)
        stepped = self._steps.take() or stepped
        self._find()
        cost = self._observer.after_batch(self.run.layers)
        passes, self._passes = max(1, self._passes), 0
        if cost is not None:
            self.run.cost = self.timeline.cost = cost
        work = passes * self._observer.meter.work()
        self.ledger.after_batch(work, self.run.frozen)
        if not self.run.layers:
            return False
        if stepped:
            self._advance()
        self.method.batch_done(self.run, stepped)
        if self.run.shadow_step is not None and self.run.shadow_step.repeated:
            self.run.shadow_step.repeated = False
            self.ledger.book_repeated(work)
        if not stepped:
            return False
        self.method.step_done(self.run)
        self._decider.step_done()
        return True

    def end_epoch(self, epoch: int | None = None, last: bool = False) -> None:
        """An epoch is over.

        Args:
            epoch: Its number from 0 on; counted by itself otherwise. An epoch that was checked before, as after a
                resume, is not checked again.
            last: Whether training ends with it: nothing is left to save then.
        """
        number = self._checked_epoch + 1 if epoch is None else epoch
        if number <= self._checked_epoch:
            return
        self.stop_watching()
        self._checked_epoch = number
        if self.run.layers and not last and self.method.epoch_check_due(self.run, number):
            self._decider.check()

    def end(self) -> None:
        """Training ended or was interrupted: everything that watches it goes. May be called more than once."""
        self.stop_watching()
        self._steps.remove()
        self.method.end(self.run)
        self.frozen.norms.end()
        self._started = False

    def stop_watching(self) -> None:
        """What watches a single batch goes: a batch that was skipped or was interrupted ends here."""
        self._observer.stop()

    # --- decide

    def change(
        self,
        freeze_now: Collection[str] | Mapping[str, float | None] = (),
        thaw_now: Collection[str] = (),
        untrained: bool = False,
    ) -> None:
        """Let layers stop or train again, from the next batch on. Call it on every process, between two batches.

        Args:
            freeze_now: Names of layers, or a mapping to the confidence in each. The last thing that an optimizer trains
                is left to it.
            thaw_now: Names of frozen layers. They start with a fresh optimizer state.
            untrained: What freezes has the weights that it had before the run: its statistics fit them.

        Raises:
            ValueError: There is no such layer. One that always trains goes on doing so.
        """
        self._decider.change(Decision(freeze_now, thaw_now, untrained))

    # --- how far the training is

    def _advance(self) -> None:
        run = self.run
        run.steps += 1
        run.global_steps += 1
        self.timeline.steps = run.global_steps
        run.batches_before = run.batches
        run.batches, run.epoch, run.progress = self._position()

    def new_run(self) -> None:
        """What comes is a run of its own, of the same model: its length counts from here, what is frozen stays so."""
        self.run.steps = self.run.batches = self.run.batches_before = self._batches = 0
        self.run.epoch, self.run.progress = 0.0, None
        self._checked_epoch = -1

    # --- save and resume

    def state_dict(self) -> dict[str, Any]:
        """The timeline, the counters and the method's own state: plain values, and tensors that no later step moves."""
        return self._parts.state_dict({"checked_epoch": self._checked_epoch, "counted": self._batches})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state: what was frozen freezes, what froze later in this very model thaws.

        Raises:
            ValueError: It is of another version, model, window or sample size.
        """
        timeline = restore(state, self._model)
        later = [layer for name, layer in frozen_here(self._model).items() if name not in state["frozen"]]
        self.method.reset()
        started = self._started
        self._take(timeline, self.run)
        self._started = started
        self._checked_epoch, self._batches = state["counters"]["checked_epoch"], state["counters"]["counted"]
        self._parts.load_state_dict(state, later)
        excluded = [layer.name for layer in self.run.frozen_layers if layer.always_trains == "excluded"]
        if excluded:  # since the state was saved
            self.change(thaw_now=excluded)

    @contextlib.contextmanager
    def restoring(self, state: dict[str, Any]) -> Iterator[None]:
        """``load_state_dict``, then the time in which an optimizer takes its state from the same checkpoint.

        What thawed after the last step has no optimizer state yet; FSDP2 wants one of all that trains.
        """
        self.load_state_dict(state)
        last = {event.layer: event for event in self.timeline.events}
        thawed = {name for name, event in last.items() if (event.kind, event.step) == ("thaw", self.run.global_steps)}
        fresh = [layer for layer in self.layers if layer.name in thawed]
        freeze(self._model, fresh)
        try:
            yield
        finally:
            thaw(self._model, fresh)
