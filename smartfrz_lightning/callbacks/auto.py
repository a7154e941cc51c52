"""AutoFreezeCallback: the front freezes where the gradient norm hardly changes any more."""

import math
from typing import Any

import torch
from torch.optim import Optimizer

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.callbacks.gradients import LayerGradients
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.layers.layer import connected


class AutoFreezeCallback(FreezingCallback):
    r"""AutoFreeze (Liu et al. 2021; Appendix B of the SmartFRZ paper).

    At every evaluation the gradients of each active layer, summed since the evaluation before, give a norm, and two
    such norms a change rate ``|before - now| / before``. Layers whose rate lies below the N-th percentile of all active
    layers count as converged; those of them freeze before which every layer is frozen.

    The norm is the paper's, L2; the authors' code (github.com/YuhanLiu11/AutoFreeze) takes L1.

    - **When**: to compare with; fine-tuning transformers, for which it was made.
    - **When not**: a front is worth holding from the start: it freezes after it has moved.
    - **Cost**: one buffer the size of the trainable weights, and their norms at each evaluation.
    - **Source**: Liu et al. 2021, "AutoFreeze: Automatically Freezing Model Blocks to Accelerate Fine-tuning".

    Args:
        evaluations_per_epoch: M, how often an epoch layers are evaluated; 4 in the SmartFRZ paper.
        percentile: N, between 0 and 100; 50 in both papers.
        every_n_train_steps: Evaluate every n optimizer steps instead of M times an epoch.
        kwargs: Arguments of ``FreezingCallback``, such as ``exclude``.

    Raises:
        ValueError: An argument is out of range; on ``fit``: the data loader has no length and
            ``every_n_train_steps`` is not given.
    """

    works_sharded = False

    def __init__(
        self,
        evaluations_per_epoch: int = 4,
        percentile: float = 50,
        every_n_train_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(every_n_train_steps=1 if every_n_train_steps is None else every_n_train_steps, **kwargs)
        if evaluations_per_epoch < 1:
            raise ValueError(f"evaluations_per_epoch={evaluations_per_epoch}: must be at least 1")
        if not 0 < percentile < 100:
            raise ValueError(f"percentile={percentile}: must lie between 0 and 100")
        self.evaluations_per_epoch = None if every_n_train_steps else evaluations_per_epoch
        self.percentile = percentile

    def reset(self) -> None:
        self._gradients = LayerGradients()
        self._norms: dict[str, float] = {}

    def start(self, run: TrainingRun) -> None:
        if self.evaluations_per_epoch is not None and run.batches_per_epoch == math.inf:
            raise ValueError(
                f"evaluations_per_epoch={self.evaluations_per_epoch} needs a data loader with a length: give "
                "every_n_train_steps"
            )

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        if run.is_first_process:
            self._gradients.add(run.model, run.active, optimizer)

    def check_due(self, run: TrainingRun) -> bool:
        if self.evaluations_per_epoch is None:
            return super().check_due(run)
        return run.passed(max(1, round(run.batches_per_epoch / self.evaluations_per_epoch)))

    def select(self, run: TrainingRun) -> list[str]:
        now, before = self._gradients.norms(run.active), self._norms
        self._gradients.clear()
        self._norms = now
        rates = {n: abs(before[n] - now[n]) / before[n] if before[n] else 0.0 for n in now if n in before}
        if not rates:
            return []
        limit = torch.quantile(torch.tensor(list(rates.values()), dtype=torch.float64), self.percentile / 100)
        return connected(run.layers, run.frozen, [name for name, rate in rates.items() if rate < limit])

    def method_state(self) -> dict[str, Any]:
        return {"gradients": self._gradients.state_dict(), "norms": self._norms}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        self._gradients.load_state_dict(state["gradients"])
        self._norms = state["norms"]
