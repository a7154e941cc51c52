"""FreezingMethod: a freezing rule with the options that all methods share."""

import math
from abc import ABC
from collections.abc import Sequence
from numbers import Integral

from smartfrz_lightning.engine.rule import FreezingRule
from smartfrz_lightning.engine.run import TrainingRun


class FreezingMethod(FreezingRule, ABC):
    """A rule that says which layers should stop training now. Everything else is the engine's.

    A method says in ``select`` what should freeze, and overrides of the rest what it needs.

    Args:
        every_n_epochs: Ask at the end of every n-th epoch; 1 if neither interval is given, or every tenth of a run that
            has a single epoch or none.
        every_n_train_steps: Ask every n optimizer steps instead.
        exclude: Shell-style patterns of modules, layers or parameters that always train, such as ``"head"`` or
            ``"*.attn.*"``.

    Raises:
        ValueError: Both intervals are given, or one is no whole number of at least 1.
    """

    def __init__(
        self,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        exclude: Sequence[str] | str = (),
    ) -> None:
        super().__init__()
        if every_n_epochs is not None and every_n_train_steps is not None:
            raise ValueError(
                f"every_n_epochs={every_n_epochs} and every_n_train_steps={every_n_train_steps}: give one of them"
            )
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_train_steps", every_n_train_steps)):
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
        self._given_interval = bool(every_n_epochs or every_n_train_steps)
        self.every_n_epochs = every_n_epochs if every_n_train_steps else every_n_epochs or 1
        self.every_n_train_steps = every_n_train_steps
        if not isinstance(exclude, str | Sequence) or not all(isinstance(pattern, str) for pattern in exclude):
            raise ValueError(f"exclude={exclude!r}: give a pattern, such as 'head', or several in a list")
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def check_due(self, run: TrainingRun) -> bool:
        if not self._given_interval and run.total_batches <= run.batches_per_epoch and run.total_batches < math.inf:
            return run.passed(max(1.0, run.total_batches / 10)) and run.batches < run.total_batches
        return bool(self.every_n_train_steps) and run.global_steps % self.every_n_train_steps == 0

    def epoch_check_due(self, run: TrainingRun, epoch: int) -> bool:
        return bool(self.every_n_epochs) and (epoch + 1) % self.every_n_epochs == 0
