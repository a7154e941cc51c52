"""SmartFreezeCallback: choose a prefix at the start, try it, then ask what may freeze later."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.stages.interval import IntervalStage
from smartfrz_lightning.stages.later import LaterStage
from smartfrz_lightning.stages.stage import Stage
from smartfrz_lightning.stages.start import StartStage
from smartfrz_lightning.stages.verify import VerifyStage


def _to_all(hook: str) -> Callable[..., None]:
    def passed_on(self: "SmartFreezeCallback", *args: Any) -> None:
        for stage in self.stages.values():
            getattr(stage, hook)(*args)

    return passed_on


class SmartFreezeCallback(FreezingCallback):
    """Stop training what need not train, in three stages.

    ``start``: in the first 2 % of the steps only the head trains, and the gradients of all layers are watched; then, of
    the prefixes (the network's first layers, up to some depth) that are safe, the one that saves most is frozen.
    ``verify``: for a tenth of the run shadow weights, in which everything trains, take the same steps; if they are not
    worse, the model adopts them. ``later``: from two fifths of the run on, after each twentieth (in a run of many
    epochs, at the end of the epoch), the deepest prefix freezes that needs no further training, by its depth, the share
    of the run that is left and the fall of the training loss, as learned from recorded runs. After two fifths of a long
    run it also decides how much of a prefix that was frozen at the start stays frozen.

    - **When**: fine-tuning a pretrained network.
    - **When not**: a run far past its plateau is better shortened.
    - **Cost**: the 2 % at the start, in which nothing trains for good; where a prefix is frozen, a trial of a tenth of
      the run, at most 50 steps (100 in a long one), with a second set of weights and optimizer states in memory.
    - **Source**: this project, after Li et al. 2023, "SmartFRZ"; the paper's own method is
      ``AttentionFreezeCallback``.

    Args:
        start: ``True``, ``False``, or a stage of your own.
        verify: The same.
        later: The same.
        threshold: p(safe) from which a prefix freezes, between 0 and 1: how likely that costs at most 2 points of
            accuracy at the start, at most 1 later. By default 0.65 at the start of a short run where the prefix is
            tried afterwards, 0.8 at that of others, and 0.85 later.
        save: Share of the FLOPs of the run to save. Of the prefixes that are safe enough at the start and save as much,
            the safest one is frozen, or else the one that saves most; it is tried, and what the trial confirms stays
            frozen to the end. What is missing is saved by one layer after another (``IntervalStage``).
        exclude: Shell-style patterns of modules, layers or parameters that always train.
        report: Whether to print a table at the end of a fit and to leave it as CSV and picture in the folder of the
            Trainer's logger; or another folder for the files.

    Raises:
        ValueError: An argument is out of range, or one belongs to a stage that was replaced or left out.

    Examples:
        >>> from lightning import Trainer
        >>> from smartfrz_lightning import SmartFreezeCallback
        >>> trainer = Trainer(max_epochs=10, callbacks=[SmartFreezeCallback()], logger=False)
        >>> saves_a_share = SmartFreezeCallback(save=0.4)
    """

    thaws = True

    def __init__(
        self,
        start: bool | Stage = True,
        verify: bool | Stage = True,
        later: bool | Stage = True,
        threshold: float | None = None,
        save: float | None = None,
        exclude: Sequence[str] | str = (),
        report: bool | str | Path = True,
    ) -> None:
        super().__init__(report, exclude=exclude)
        for name, value in (("start", start), ("verify", verify), ("later", later)):
            if not isinstance(value, bool | Stage):
                raise ValueError(f"{name}={value!r}: must be True, False or a Stage")
        if save is not None and later is not True:
            raise ValueError(f"save={save}: belongs to the later stage; give it to a stage of your own")
        if threshold is not None and start is not True and (later is not True or save is not None):
            raise ValueError(f"threshold={threshold}: belongs to the start and later stages; give it to those")
        if start is True:
            start = StartStage(threshold=threshold)
        if verify is True:  # without a start there is nothing to try
            verify = bool(start) and VerifyStage(likely=0.8 if threshold is None else threshold)
        if later is True and save is not None:
            later = IntervalStage(save)
        elif later is True:
            later = LaterStage() if threshold is None else LaterStage(threshold=threshold)
        if isinstance(start, StartStage):
            start.verified = bool(verify)
            start.save = later.save if isinstance(later, IntervalStage) else None
        self.stages: dict[str, Stage] = {
            name: stage
            for name, stage in (("start", start), ("verify", verify), ("later", later))
            if isinstance(stage, Stage)
        }
        if not self.stages:
            raise ValueError("start, verify and later are all False: nothing would ever freeze")
        self.works_sharded = all(stage.works_sharded for stage in self.stages.values())

    def _asked_now(self, run: TrainingRun, epoch: int | None = None) -> Stage | None:
        """The first stage whose check is due; none behind one that is yet to decide."""
        for stage in self.stages.values():
            due = stage.check_due(run) if epoch is None else stage.epoch_check_due(run, epoch)
            if due:
                return stage
            if stage.busy(run):
                return None
        return None

    # Every hook goes to all stages; the decision is that of the stage whose turn it is.

    prepare, start, before_batch = _to_all("prepare"), _to_all("start"), _to_all("before_batch")
    layers_found, optimizer_stepped = _to_all("layers_found"), _to_all("optimizer_stepped")
    batch_done, step_done = _to_all("batch_done"), _to_all("step_done")
    epoch_done, changed, end = _to_all("epoch_done"), _to_all("changed"), _to_all("end")

    def reset(self) -> None:
        self._turn: Stage | None = None
        for stage in self.stages.values():
            stage.reset()

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        for stage in reversed(self.stages.values()):  # the first may take gradients away
            stage.gradients_ready(run, optimizer)

    def check_due(self, run: TrainingRun) -> bool:
        self._turn = self._asked_now(run)
        return self._turn is not None

    def epoch_check_due(self, run: TrainingRun, epoch: int) -> bool:
        self._turn = self._asked_now(run, epoch)
        return self._turn is not None

    def select(self, run: TrainingRun) -> Decision:
        return Decision.of(self._turn.select(run)) if self._turn is not None else Decision()

    def decision_applied(self, run: TrainingRun) -> None:
        if self._turn is not None:
            self._turn.decision_applied(run)

    def method_state(self) -> dict[str, Any]:
        return {_key(name, stage): stage.method_state() for name, stage in self.stages.items()}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        for name, stage in self.stages.items():
            if (key := _key(name, stage)) in state:
                stage.load_method_state(state[key], run)


def _key(name: str, stage: Stage) -> str:
    """Of a stage's state: one of another kind, as where ``save`` was given meanwhile, begins anew."""
    return f"{name}: {type(stage).__name__}"
