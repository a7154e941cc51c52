"""Stage: a freezing rule that is one of several in a run."""

from abc import ABC

from smartfrz_lightning.engine.rule import FreezingRule
from smartfrz_lightning.engine.run import TrainingRun


class Stage(FreezingRule, ABC):
    """One of the rules of ``SmartFreezeCallback``, which asks them in order.

    A stage observes (gradients, steps, epochs), decides in ``select``, and saves its state. It does not know the
    other stages, the Trainer or the report.
    """

    def busy(self, run: TrainingRun) -> bool:
        """Whether the stages behind it have to wait for its decision."""
        return False
