"""SmartFreezeCallback: hold the front that need not move, or freeze layers as the attention predictor says."""

import math
from collections.abc import Collection
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from smartfrz_lightning.callbacks.copied_step import why_not
from smartfrz_lightning.callbacks.look_beside import LookBeside
from smartfrz_lightning.callbacks.windowed import WindowedFreezingCallback
from smartfrz_lightning.engine.method import Decision
from smartfrz_lightning.engine.probed_start import LEAST, LONGEST, ProbedStart
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.engine.second_look import CHECKED, FORESEEN, LIKELY, held_until, look_length
from smartfrz_lightning.engine.second_look import LEAST as LEAST_LOOK
from smartfrz_lightning.predictor.inference import FreezeConfidence
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.weights import load_predictor
from smartfrz_lightning.private.trainer import trains_statistics_only

# Arguments that say when and how layers are looked at again, with what they are if not given.
_LATER = {
    "window": None,
    "front_only": True,
    "snapshot_every_n_steps": None,
    "every_n_epochs": None,
    "every_n_train_steps": None,
}


class SmartFreezeCallback(WindowedFreezingCallback):
    """Hold from the start on what need not train, or freeze layers when they are done (SmartFRZ).

    ``start="probe"``, the default, decides at the start: in the first 2 % of the steps the head alone moves, while the
    gradients of all layers are watched. A predictor that was trained on what holding a front really came to in the end
    then says of each front (the first layer, the first two, ...) how likely it does no harm to hold it. The one that
    saves most, of those likely enough, is held; the head is put back, and training begins. After a tenth of the run a
    *second look* shows whether that was right: a copy of the model of which everything trains goes on beside it for a
    while, in the same batches. If its loss is clearly the higher one, the front stays; if somewhat, the part of it that
    was likely enough without a look; otherwise the copy takes over. In a run of more than 1,000 steps the look takes
    the 100 after the probe, so that a copy which takes over has missed nothing else, and what is still held after two
    fifths of the run, or 1,000 steps, trains from there on as well. Where no front is likely enough, nothing is held,
    and the run is one without this callback, but for the probe. Layers that were never trained are not held: none of a
    network that trains from scratch, and no new ones in front of the last one (a head of two layers). New ones between
    pretrained ones belong in ``exclude``.

    ``start="none"`` is the paper's method (Li et al., ICLR 2023): small snapshots of every active layer's weights are
    kept while training goes on. At each check a pretrained attention predictor looks at every layer's window and gives
    its confidence that the layer is ready; those above ``threshold`` freeze, each for itself or from the front on.

    - **When**: fine-tuning a pretrained network. Data without random crops or noise: with ``cache_front=True``.
    - **When not**: a run far past its plateau is better shortened, and saves little; from scratch nothing is held, and
      where the front is released after all, nothing is saved.
    - **Cost**: the probe's 2 % of the steps, which train nothing for good; where a front is held, a second look of a
      tenth of the run, at most 50 steps (100 in one of more than 1,000), with a copy of the model and its optimizer in
      memory meanwhile.
    - **Source**: this project; ``start="none"`` is Li et al. 2023, "SmartFRZ".

    Args:
        predictor: Safetensors file of a predictor of the kind that ``start`` wants; a shipped one by default.
        threshold: How sure the predictor must be, between 0 and 1. With ``start="probe"`` that holding the front does
            no harm: such a run ends at most 2 points of accuracy below full training; by default 0.8, or 0.65 until a
            second look in a run of at most 1,000 steps. With ``start="none"`` that a layer is ready; by default 0.9.
            The paper takes the more likely of two decisions. The shipped predictor of windows was trained with both
            labels weighted alike, though 7.6 % of its windows say "freeze", so 0.5 is far less than an even chance;
            that is at 0.92.
        save: Save this share of the training computation, where it costs least: hold the front that does most likely no
            harm among those that save as much, of layers that were never trained too. In place of ``threshold``; for
            ``start="probe"``.
        start: ``"probe"`` or ``"none"``.
        probe_steps: Steps of the probe; by default 2 % of the run, but at most 30. Runs of less than 100 steps are not
            probed, and nothing is held in them.
        second_look: Whether to look again at the front that ``threshold`` chose. After a tenth of the run, for another
            tenth of it, at most 50 steps, a copy of the model trains beside it, all of it; in a run of more than 1,000
            steps for 100 steps, right after the probe, or once learning rates rise no more (250 steps later at most).
            If the copy's loss is higher by 1.5 standard errors, the front stays; by 0.5, as much of it as the
            ``threshold`` without a look allows; otherwise the model goes on as the copy, and everything trains. Where
            no copy can be trained, or the look would cost more than the front can save, that much stays too; where none
            can, as is known beforehand, inputs far from those of the network make a front less likely. In a run of more
            than 1,000 steps what stayed trains as well once two fifths are over, or 1,000 steps; a run of unknown
            length counts as one of 1,500. ``False`` holds the front to the end, whatever comes, as ``save`` does.
        window: For ``start="none"``: snapshots kept a layer; by default as many as the predictor was trained on.
        sample_size: Sampled weights a layer; that of the predictor.
        kwargs: Arguments of :class:`~smartfrz_lightning.WindowedFreezingCallback`: what to exclude, the cache of the
            front, the report; and for ``start="none"`` the history and when to look at it.

    Raises:
        FileNotFoundError: There is no such predictor file.
        ValueError: An argument is out of range or belongs to the other ``start``, or the predictor file cannot be read,
            is of the other kind, or of another sample size.

    Example:
        >>> from lightning import Trainer
        >>> from smartfrz_lightning import SmartFreezeCallback
        >>> trainer = Trainer(max_epochs=10, callbacks=[SmartFreezeCallback()], logger=False)
        >>> paper = SmartFreezeCallback(start="none", threshold=0.5, front_only=False)
    """

    def __init__(
        self,
        predictor: str | None = None,
        threshold: float | None = None,
        save: float | None = None,
        start: Literal["none", "probe"] = "probe",
        probe_steps: int | None = None,
        second_look: bool = True,
        window: int | None = None,
        sample_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        if start not in ("none", "probe"):
            raise ValueError(f"start={start!r}: must be 'probe' or 'none'")
        probes = start == "probe"
        _check(threshold, save, probe_steps, probes)
        if not second_look and not probes:
            raise ValueError("second_look=False belongs to start='probe': nothing is held from the start otherwise")
        network = None if probes else load_predictor(predictor, sample_size)
        if probes:
            later = {name: value for name, value in {"window": window, **kwargs}.items() if name in _LATER}
            if wrong := [f"{name}={value!r}" for name, value in later.items() if value != _LATER[name]]:
                raise ValueError(
                    f"{', '.join(wrong)}: with start='probe' the front is chosen once, at the start, and nothing is "
                    "looked at again; leave it out, or take start='none'"
                )
        if network is not None:
            window = network.window if window is None else window
            sample_size = network.sample_size
        window, sample_size = 30 if window is None else window, 1024 if sample_size is None else sample_size
        super().__init__(window=window, sample_size=sample_size, **kwargs)
        if probes:
            self.every_n_epochs = None  # nothing is looked at again
            self.thaws = True
        self.start_with, self.probe_steps, self.save = start, probe_steps, save
        self.second_look = second_look
        self.predictor = predictor
        self.threshold = threshold if threshold is not None or probes else 0.9
        self._network = network
        self._start_predictor = StartPredictor.load(predictor) if probes else None
        if network is not None and self.window != network.window:
            rank_zero_warn(f"window={self.window}: the predictor was trained on windows of {network.window} snapshots")

    def reset(self) -> None:
        super().reset()
        self._due = False  # a probe has just ended; what it says is to be done
        self._probe: ProbedStart | None = None
        self._look: LookBeside | None = None
        self._can_look = False
        self._look_state: dict[str, Any] | None = None
        if self._start_predictor is not None:
            threshold = LIKELY if self.threshold is None else self.threshold
            how = (threshold, self.save, self.probe_steps, self.sample_size, self.seed)
            self._probe = ProbedStart(self._start_predictor, *how)

    def start(self, run: TrainingRun) -> None:
        if self._network is not None:
            super().start(run)
            self._confidence = FreezeConfidence(self._network.to(next(run.model.parameters()).device))
            return
        assert self._probe is not None
        first = not self._probe.running and not run.timeline.steps and not run.layers
        if first and (why := self._probe.begin(run)):
            rank_zero_warn(f"start='probe': {why}; nothing is probed or held")

    def end(self, run: TrainingRun) -> None:
        super().end(run)
        if self._probe is not None:
            self._probe.end(run)

    def changed(self, run: TrainingRun, frozen: Collection[str], thawed: Collection[str]) -> None:
        super().changed(run, frozen, thawed)
        free, done = sum(not layer.pinned for layer in run.layers), run.progress or 0.0
        if self._network is not None and len(frozen) > free / 2 and 0 < done < 0.5:
            rank_zero_warn(
                f"SmartFreezeCallback froze {len(frozen)} of {free} layers at once, after {done:.0%} of the run. The "
                "predictor's confidence is not calibrated on kinds of networks and training that it has not seen: if "
                f"the model ends worse than without freezing, raise threshold={self.threshold}"
            )

    # --- the second look

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._probe is None:
            return
        wanted, state = self.save is None and self.second_look, self._look_state if trainer.global_step else None
        if wanted or (state and not state["over"]):
            likely = LIKELY if self.threshold is None else self.threshold
            self._look = LookBeside(trainer, self._engine, likely, wanted, state)
            self._can_look = wanted and not why_not(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._look is not None:
            with self._engine.ledger.timed():
                self._look.before_batch(pl_module, batch)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._look is not None:
            self._look.gradients_ready(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._look is not None and not trains_statistics_only(trainer):
            with self._engine.ledger.timed():
                self._look.after_batch(pl_module, outputs, batch_idx)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_look": None}

    # --- the probe

    @property
    def reads_gradients(self) -> bool:
        return self._probing is not None

    @property
    def _probing(self) -> ProbedStart | None:
        return self._probe if self._probe is not None and self._probe.running else None

    def first_gradients(self, run: TrainingRun, optimizer: Optimizer) -> None:
        self.gradients_ready(run, optimizer)

    def layers_found(self, run: TrainingRun) -> None:
        if self._network is not None:
            super().layers_found(run)
        elif self._probe is not None:
            self._probe.layers_found(run)

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        if self._probing:
            self._probing.gradients_ready(optimizer)

    def step_done(self, run: TrainingRun) -> None:
        if self._network is not None:
            super().step_done(run)
        elif self._probing:
            looks = self._can_look and look_length(run.total_steps) >= LEAST_LOOK
            if self.threshold is None and looks and run.total_steps <= FORESEEN:
                self._probing.threshold = CHECKED
            # Who wants no look answers for it.
            self._probing.checked = looks or not self.second_look or self.save is not None
            self._due = self._probing.step_done(run)

    def check_due(self, run: TrainingRun) -> bool:
        if self._network is not None:
            return super().check_due(run)
        due, self._due = self._due, False
        return due or bool(self._held_long_enough(run))

    def select(self, run: TrainingRun) -> Decision | dict[str, float]:
        if self._network is not None:
            return super().select(run)
        start = run.timeline.start
        if start is not None and not {event.layer for event in run.timeline.events} & set(start.held):
            return Decision({name: start.sure[name] for name in start.held}, held=True)
        return Decision(thaw=self._held_long_enough(run))

    def _held_long_enough(self, run: TrainingRun) -> list[str]:
        """Layers that have been held from the start and are to train from now on."""
        start, whole = run.timeline.start, LONGEST if run.total_steps == math.inf else run.total_steps
        if start is None or not self.second_look or self.save is not None or run.steps < held_until(whole):
            return []
        thawed = {event.layer for event in run.timeline.events if event.kind == "thaw"}
        return [name for name in run.frozen if name in start.held and name not in thawed]

    def method_state(self) -> dict[str, Any]:
        if self._probe is None:
            return super().method_state()
        look = self._look_state if self._look is None else self._look.state_dict()
        return {"probe": self._probe.state_dict(), "look": look}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        if self._probe is None:
            super().load_method_state(state, run)
        else:
            self._probe.load_state_dict(state.get("probe", {}), run)
            self._look_state = state.get("look")
            self._due = run.timeline.start is not None and not run.timeline.events  # saved while the check waited

    # --- windows

    def ready(self, windows: Tensor, names: list[str], steps: list[int]) -> dict[str, float]:
        confidences = self._confidence(windows, names, steps).tolist()
        return {name: value for name, value in zip(names, confidences, strict=True) if value > self.threshold}


def _check(threshold: float | None, save: float | None, probe_steps: int | None, probes: bool) -> None:
    for name, value in (("threshold", threshold), ("save", save)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name}={value}: must lie between 0 and 1")
    if probe_steps is not None and probe_steps < LEAST:
        raise ValueError(f"probe_steps={probe_steps}: must be at least {LEAST}, to tell drift from noise")
    if save is not None and threshold is not None:
        raise ValueError(f"save={save} and threshold={threshold}: give one of them")
    for name, value in (("save", save), ("probe_steps", probe_steps)):
        if value is not None and not probes:
            raise ValueError(f"{name}={value} belongs to start='probe', which decides once, at the start")
