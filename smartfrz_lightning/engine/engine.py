"""Engine: what happens in a freezing training, event by event."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from smartfrz_lightning.engine.frozen import FrozenLayers
from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.observer import Observer
from smartfrz_lightning.engine.outside import frozen_here
from smartfrz_lightning.engine.processes import Processes
from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.engine.state import VERSION, check_version, lost
from smartfrz_lightning.engine.steps import StepHooks, has_stepped
from smartfrz_lightning.freezing.compiled import allow_recompiling
from smartfrz_lightning.layers.layer import mark_excluded
from smartfrz_lightning.private.pytorch import tree_map_only
from smartfrz_lightning.report.timeline import Timeline

_COUNTED = ("steps", "global_steps", "batches", "batches_before", "epoch", "progress", "latest_rates")


class Engine:
    """Pass the events of a training on to the parts that observe, decide and freeze.

    ``Freezer`` is the one for a loop of your own; callbacks of a Trainer use it
    too.

    Attributes:
        run: What the method knows of the training.
        frozen: Asks the method, and keeps what is frozen as it is.
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
        self._model, self.method, self.processes = model, method, processes
        self._position, self._say = position, say
        self.run = TrainingRun(
            model,
            list(optimizers),
            is_first_process=processes.is_first,
            agree=processes.agree,
            mean=processes.mean,
            say=self._tell,
        )
        self.frozen = FrozenLayers(model, method, processes, self.run)
        self._observer = Observer(model)
        self._steps = StepHooks(self.gradients_ready, self._optimizer_stepped)
        self._batches, self._checked_epoch = 0, -1
        self._started = False

    @property
    def timeline(self) -> Timeline:
        """What froze when, and what it saved."""
        return self.frozen.timeline

    def _tell(self, text: str) -> None:
        self.timeline.notes.append(text)
        if self.run.is_first_process:
            self._say(text)

    # --- one training, in the order in which it happens

    def start(
        self,
        optimizers: Sequence[Optimizer] | None = None,
        batches_per_epoch: float | None = None,
        total_batches: float | None = None,
    ) -> None:
        """Training begins or goes on. The first batch does this by itself."""
        if any(map(is_lazy, self._model.parameters())):
            raise ValueError("the model has lazy modules: call it on a batch before training, as a sanity check does")
        self._started = True
        run = self.run
        run.optimizers = run.optimizers if optimizers is None else list(optimizers)
        run.batches_per_epoch = run.batches_per_epoch if batches_per_epoch is None else batches_per_epoch
        run.total_batches = run.total_batches if total_batches is None else total_batches
        self._steps.register(run.optimizers)
        self.frozen.start()
        run.begun_before |= not run.global_steps and any(map(has_stepped, run.optimizers))
        self.method.start(run)
        allow_recompiling(self.timeline.patterns)

    def before_batch(self, batch: Any = None, train_statistics: bool = False) -> None:
        """A batch is about to begin; maybe one that trains running statistics alone, those of frozen layers too."""
        if not self._started:
            self.start()
        self._observer.stop()
        self.run.loss = None
        if train_statistics:
            self.frozen.norms.release()
            return
        self.frozen.norms.keep_still()
        self.method.before_batch(self.run)
        self._observer.before_batch(batch, find=not self.run.layers)

    def before_backward(self, *losses: Tensor, only: bool = False) -> None:
        """These are about to be differentiated; in a loop of your own ``loss.backward()`` is noticed by itself.

        Args:
            losses: The losses.
            only: It is the only backward pass of this batch: what watches the forward pass ends.
        """
        self.run.loss = losses[0].detach().mean() if losses else None
        self._observer.before_backward(*losses, only=only)

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
            self.frozen.set_layers(mark_excluded(found, self.method.exclude))
            if not self._observer.saw_loss:
                self.run.say(
                    "No backward pass was seen in this batch, so that what a step costs is not known. Call "
                    "loss.backward() or, before any other way, freezer.before_backward(loss)."
                )
            self.method.layers_found(self.run)

    def after_batch(self, stepped: bool = False) -> bool:
        """A training batch is over; returns whether it was a step and layers are known.

        That an optimizer stepped is noticed by itself, unless it would have except for an overflow.
        """
        self._batches += 1
        self.frozen.norms.batch_done(self.processes.agree)
        stepped = self._steps.take() or stepped
        self._find()
        cost = self._observer.after_batch(self.run.layers)
        if cost is not None:
            self.run.cost = self.timeline.cost = cost
        work = self._observer.meter.work()
        self.timeline.batch_done(work, self.run.frozen)
        if not self.run.layers:
            return False
        if stepped:
            self._advance()
        self.method.batch_done(self.run, stepped)
        if self.run.shadow_step is not None and self.run.shadow_step.repeated:
            self.run.shadow_step.repeated = False
            self.timeline.batch_repeated(work)
        if not stepped:
            return False
        self.method.step_done(self.run)
        self.frozen.step_done()
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
        self._observer.stop()
        self.method.epoch_done(self.run)
        self._checked_epoch = number
        if self.run.layers and not last and self.method.epoch_check_due(self.run, number):
            self.frozen.check()

    def end(self) -> None:
        """Training ended or was interrupted: everything that watches it goes. May be called more than once."""
        self._observer.stop()
        self._steps.remove()
        self.method.end(self.run)
        self.frozen.norms.end()
        self._started = False

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
        self.frozen.change(Decision(freeze_now, thaw_now, untrained))

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
        self.run.untrained.clear()  # what an earlier fit froze is neither tried nor asked about
        self._checked_epoch = -1

    # --- save and resume

    def state_dict(self) -> dict[str, Any]:
        """The timeline, the counters and the method's own state: plain values, and tensors that no later step moves."""
        run, own = self.run, self.method.method_state()
        counted = {"checked_epoch": self._checked_epoch, "counted": self._batches}
        return {
            "version": VERSION,
            "timeline": {**self.timeline.state_dict(), "fit_seconds": self.timeline.seconds()},
            "counters": {**counted, **{name: getattr(run, name) for name in _COUNTED}},
            "frozen": list(run.frozen),
            "untrained": sorted(run.untrained),
            "confidence": dict(run.confidence),
            "method": tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), own),
            "recalibrating": self.frozen.norms.state_dict(),
            "meter": self._observer.meter.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state: what was frozen freezes, what froze later in this very model thaws.

        Raises:
            ValueError: It is of another version, model, window or sample size.
        """
        check_version(state, "freezing callback")
        if names := lost(state, self._model):
            raise ValueError(
                f"the checkpoint froze layers of another model: no parameter {names[:3]} here. Resume with the model "
                "that was saved, or without ckpt_path"
            )
        timeline, run = Timeline.from_state_dict(state["timeline"]), self.run
        later = [layer for name, layer in frozen_here(self._model).items() if name not in state["frozen"]]
        if self._started:
            self.end()  # the next batch begins anew
        self._observer = Observer(self._model)
        self.frozen = FrozenLayers(self._model, self.method, self.processes, run)
        self.frozen.timeline = timeline
        run.loss = None
        for name in _COUNTED:
            setattr(run, name, state["counters"][name])
        self._checked_epoch, self._batches = state["counters"]["checked_epoch"], state["counters"]["counted"]
        run.frozen, run.untrained = list(state["frozen"]), set(state["untrained"])
        run.confidence, run.cost, run.begun_before = dict(state["confidence"]), timeline.cost, False
        self._observer.meter.load_state_dict(state["meter"])
        self.frozen.set_layers(mark_excluded(timeline.layers, self.method.exclude))
        self.method.reset()
        self.method.prepare(run)
        if run.frozen or later:  # the wrapper was built for a model in which others trained
            self.frozen.apply(run.frozen_layers, later)
        self.frozen.norms.load_state_dict(state["recalibrating"], run.frozen_layers)
        if run.layers:
            device = next(self._model.parameters()).device
            own = tree_map_only(Tensor, lambda tensor: tensor.to(device, copy=True), state["method"])
            self.method.load_method_state(own, run)
        excluded = [layer.name for layer in run.frozen_layers if layer.always_trains == "excluded"]
        if excluded:  # since the state was saved
            self.change(thaw_now=excluded)
