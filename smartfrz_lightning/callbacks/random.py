"""RandomFreezeCallback: a control that saves as much as a given run, with layers drawn by lot."""

import random
from pathlib import Path
from typing import Any

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.report.timeline import read_freeze_steps

_DRAWS = 100  # orders of freezing


class RandomFreezeCallback(FreezingCallback):
    """Freeze random layers, at the moments and to the FLOPs of another run of the same model, which thawed nothing.

    At each moment at which that run froze something, layers are drawn until a step costs as nearly as possible what it
    cost there. A method is worth its place only if it beats this.

    - **When**: as a control beside another method's run.
    - **When not**: ever, to train a model.
    - **Cost**: none to speak of.
    - **Source**: this project, as a control.

    Args:
        timeline: ``freeze_timeline.csv`` of the other run.
        seed: Of the lot.
        kwargs: Arguments of ``FreezingCallback``, such as ``exclude``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no timeline; in the first step: it is one of another model.
    """

    def __init__(self, timeline: str, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(every_n_train_steps=1, **kwargs)
        if not Path(timeline).is_file():
            raise FileNotFoundError(f"timeline={timeline!r}: no such file; give the freeze_timeline.csv of a run")
        self.freeze_steps = read_freeze_steps(timeline)
        self.seed = seed

    def layers_found(self, run: TrainingRun) -> None:
        unknown = set(self.freeze_steps) ^ {layer.name for layer in run.layers}
        if unknown:
            raise ValueError(
                f"the timeline is one of another model: {sorted(unknown)[:3]} are layers of only one of the two. Give "
                "the timeline of a run of this model"
            )

    def check_due(self, run: TrainingRun) -> bool:
        return run.cost is not None and run.steps in self.freeze_steps.values()

    def select(self, run: TrainingRun) -> list[str]:
        """Of many random orders of freezing, the start of one that comes nearest to the cost of the other run."""
        assert run.cost is not None
        there = {name for name, step in self.freeze_steps.items() if step is not None and step <= run.steps}
        target = run.cost.when_frozen(there).total
        best, least = [], abs(run.cost.when_frozen(run.frozen).total - target)
        lot = random.Random(f"{self.seed}/{run.steps}")
        names = [layer.name for layer in run.active]
        for _ in range(_DRAWS):
            order = lot.sample(names, len(names))
            for count in range(1, len(order) + 1):
                now = run.cost.when_frozen([*run.frozen, *order[:count]]).total
                if abs(now - target) < least:
                    best, least = order[:count], abs(now - target)
                if now < target:
                    break
        return best
