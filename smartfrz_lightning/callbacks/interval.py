"""IntervalFreezeCallback: one layer after another, timed to save a given share of the FLOPs."""

from collections.abc import Sequence
from pathlib import Path

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.stages.interval import IntervalStage
from smartfrz_lightning.stages.start import check_shares


class IntervalFreezeCallback(IntervalStage, FreezingCallback):
    """Progressive layer freezing to a target (Yuan et al. 2022, "Layer Freezing & Data Sieving").

    From some step on, one layer after another freezes at a constant interval, front first. The start is computed from
    the FLOPs of each layer, as measured in the first training step, so that the whole run saves ``flops_reduction``.

    - **When**: a given share of the FLOPs is to be saved, and nothing is known of the task.
    - **When not**: from scratch, where it cost 3.8 ± 1.4 points at 0.8 of the FLOPs (research/results/0.2.0).
    - **Cost**: none to speak of.
    - **Source**: Yuan et al. 2022, "Layer Freezing & Data Sieving: Missing Pieces of a Generic Framework for Sparse
      Training".

    Args:
        flops_reduction: Share of the training FLOPs to save, between 0 and 1.
        every_n_train_steps: The interval in optimizer steps; by default the layers are spread evenly from the start
            to the end of the run.
        exclude: Shell-style patterns of modules, layers or parameters that always train.
        report: As that of ``SmartFreezeCallback``.

    Raises:
        ValueError: An argument is out of range; on ``fit``: the run has no known length; in the first step: so much
            cannot be saved.
    """

    def __init__(
        self,
        flops_reduction: float,
        every_n_train_steps: int | None = None,
        exclude: Sequence[str] | str = (),
        report: bool | str | Path = True,
    ) -> None:
        every = 1 if every_n_train_steps is None else every_n_train_steps
        FreezingCallback.__init__(self, report, every_n_train_steps=every, exclude=exclude)
        check_shares(flops_reduction=flops_reduction)
        IntervalStage.__init__(self, flops_reduction, every_n_train_steps)

    def start(self, run: TrainingRun) -> None:
        run.require_length("IntervalFreezeCallback")
        super().start(run)

    def _planned(self, run: TrainingRun) -> dict[str, float]:
        plan = super()._planned(run)
        if self.missing > 1e-6:
            how = f"save at an interval of {self.interval} steps; shorten it" if self.interval else "save"
            raise ValueError(
                f"flops_reduction={self.save}: {self.save - self.missing:.3f} is the most that freezing one layer "
                f"after another can {how}"
            )
        return plan
