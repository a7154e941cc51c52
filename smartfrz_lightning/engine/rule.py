"""FreezingRule: the hooks by which something watches a training and decides what freezes."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from smartfrz_lightning.engine.run import TrainingRun


@dataclass(frozen=True)
class Decision:
    """Layers that should freeze and layers that should train again.

    Attributes:
        freeze: Names, or a mapping to the confidence in each, 0 to 1.
        thaw: Names of frozen layers.
        untrained: What freezes has the weights that it had before the run, so that running statistics fit them.
    """

    freeze: Collection[str] | Mapping[str, float | None] = field(default_factory=dict)
    thaw: Collection[str] = ()
    untrained: bool = False

    @classmethod
    def of(cls, answer: "Decision | Collection[str] | Mapping[str, float | None]") -> "Decision":
        """A rule's answer in full: bare names freeze, without a confidence."""
        whole = answer if isinstance(answer, Decision) else cls(answer)
        chosen = whole.freeze
        confidence = dict(chosen) if isinstance(chosen, Mapping) else dict.fromkeys(chosen)
        freeze = {name: None if value is None else float(value) for name, value in confidence.items()}
        return cls(freeze, tuple(whole.thaw), whole.untrained)


class FreezingRule(ABC):
    """Watches a training and says what should freeze. It knows neither the training loop nor the report.

    What it knows of a model it sets in ``reset``, not in ``__init__``: one object may see several models, one after
    the other. Hooks are called in the order in which they stand here, on every process.
    """

    works_sharded = True
    """Whether it can do with parameters sharded over processes (FSDP2)."""

    thaws = False
    """Whether it may answer with layers to thaw: it is then asked also when none is left to freeze."""

    @abstractmethod
    def select(self, run: TrainingRun) -> Decision | Collection[str] | Mapping[str, float | None]:
        """Names of the active layers that should freeze now. Called in the first process alone.

        A rule that is more or less sure of a layer returns a mapping, with its confidence in each, 0 to 1; one that
        also thaws returns a ``Decision``.
        """

    def reset(self) -> None:
        """Forget everything about a model: the training of another one begins."""

    def prepare(self, run: TrainingRun) -> None:
        """A fit is set up, before optimizers take their state from a checkpoint; layers are known only if it goes on.

        Raises:
            ValueError: It cannot work in such a run.
        """

    def start(self, run: TrainingRun) -> None:
        """Training begins or goes on; layers are known only if it goes on.

        Raises:
            ValueError: It cannot work in such a run.
        """

    def before_batch(self, run: TrainingRun) -> None:
        """A training batch is about to begin."""

    def layers_found(self, run: TrainingRun) -> None:
        """The layers are known, before the first optimizer step."""

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        """An optimizer is about to step.

        Gradients are as averaged over processes and unscaled, before clipping (in a loop of your own: as the optimizer
        gets them); here they can be watched, or taken away.
        """

    def optimizer_stepped(self, run: TrainingRun, optimizer: Optimizer) -> None:
        """An optimizer has just stepped."""

    def batch_done(self, run: TrainingRun, stepped: bool) -> None:
        """A training batch is done, whether or not an optimizer stepped in it."""

    def step_done(self, run: TrainingRun) -> None:
        """A training batch is done in which an optimizer stepped."""

    def epoch_done(self, run: TrainingRun) -> None:
        """An epoch is over, maybe in a batch that was begun and skipped."""

    def check_due(self, run: TrainingRun) -> bool:
        """Whether to ask after this step; must be the same on every process."""
        return False

    def epoch_check_due(self, run: TrainingRun, epoch: int) -> bool:
        """Whether to ask at the end of this epoch, counted from 0; must be the same on every process."""
        return False

    def changed(self, run: TrainingRun, frozen: Collection[str], thawed: Collection[str]) -> None:
        """Layers froze, or train again."""

    def decision_applied(self, run: TrainingRun) -> None:
        """The answer of ``select`` is known, and has been applied."""

    def method_state(self) -> dict[str, Any]:
        """What must be saved so that the training can go on: tensors and plain values."""
        return {}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        """Take up what ``method_state`` gave."""

    def end(self, run: TrainingRun) -> None:
        """Training ended or was interrupted: remove hooks."""
