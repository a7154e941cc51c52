"""AutoFreezeCallback: the front freezes where the gradient norm hardly changes any more."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.callbacks.gradients import LayerGradients
from smartfrz_lightning.callbacks.run_length import steps_per_epoch
from smartfrz_lightning.layers.layer import Layer, connected


class AutoFreezeCallback(FreezingCallback):
    r"""AutoFreeze (Liu et al. 2021; Appendix B of the SmartFRZ paper).

    At every evaluation the gradients of each active layer, summed since the evaluation before, give a norm, and two
    such norms a change rate ``|before - now| / before``. Layers whose rate lies below the N-th percentile of all active
    layers count as converged; those of them freeze before which every layer is frozen.

    The paper writes the L2 norm of the summed gradient; the authors' code (github.com/YuhanLiu11/AutoFreeze) takes its
    L1 norm. ``norm`` offers both.

    Args:
        evaluations_per_epoch: M, how often an epoch layers are evaluated; 4 in the SmartFRZ paper.
        percentile: N, between 0 and 100; 50 in both papers.
        norm: ``"l2"`` as in the paper or ``"l1"`` as in the authors' code.
        every_n_train_steps: Evaluate every n optimizer steps instead of M times an epoch.
        exclude: Patterns of what always trains.

    Raises:
        MisconfigurationException: An argument is out of range; on ``fit``: the data loader has no length and
            ``every_n_train_steps`` is not given.

    Example:
        >>> from smartfrz_lightning import AutoFreezeCallback
        >>> AutoFreezeCallback(evaluations_per_epoch=2).percentile
        50
    """

    works_sharded = False

    def __init__(
        self,
        evaluations_per_epoch: int = 4,
        percentile: float = 50,
        norm: Literal["l2", "l1"] = "l2",
        every_n_train_steps: int | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__(every_n_train_steps=every_n_train_steps or 1, exclude=exclude)
        if evaluations_per_epoch < 1:
            raise MisconfigurationException(f"evaluations_per_epoch={evaluations_per_epoch}: must be at least 1")
        if not 0 < percentile < 100:
            raise MisconfigurationException(f"percentile={percentile}: must lie between 0 and 100")
        if norm not in ("l2", "l1"):
            raise MisconfigurationException(f"norm={norm!r}: give 'l2' or 'l1'")
        self.evaluations_per_epoch = None if every_n_train_steps else evaluations_per_epoch
        self.percentile = percentile
        self.norm = norm

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.evaluations_per_epoch is None:
            return
        per_epoch = steps_per_epoch(trainer)
        if per_epoch == math.inf:
            raise MisconfigurationException(
                f"evaluations_per_epoch={self.evaluations_per_epoch} needs a data loader with a length: give "
                "every_n_train_steps"
            )
        self.every_n_train_steps = max(1, round(per_epoch / self.evaluations_per_epoch))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.is_global_zero and self.layers:
            with self._ledger.timed():
                self._gradients.add(pl_module, self.active, optimizer)

    def select(self, trainer: Trainer, pl_module: LightningModule, active: list[Layer]) -> list[str]:
        now, before = self._gradients.norms(active, {"l2": 2, "l1": 1}[self.norm]), self._norms
        self._gradients.clear()
        self._norms = now
        if not before:
            return {}
        rates = change_rates({name: before[name] for name in now}, now)
        converged = below_percentile(rates, self.percentile)
        return connected(self.layers, self.frozen, converged)

    def method_state(self) -> dict[str, Any]:
        return {"gradients": self._gradients.state_dict(), "norms": self._norms}

    def load_method_state(self, state: dict[str, Any], pl_module: LightningModule) -> None:
        self._gradients.load_state_dict(state["gradients"], pl_module)
        self._norms = state["norms"]

    def _reset(self) -> None:
        super()._reset()
        self._gradients = LayerGradients()
        self._norms: dict[str, float] = {}


def change_rates(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """Relative change of each layer's norm; 0 where it was 0 before.

    Example:
        >>> from smartfrz_lightning.callbacks.auto import change_rates
        >>> change_rates({"a": 2.0, "b": 4.0}, {"a": 3.0, "b": 3.0})
        {'a': 0.5, 'b': 0.25}
    """
    return {name: abs(before[name] - now[name]) / before[name] if before[name] else 0.0 for name in now}


def below_percentile(rates: dict[str, float], percentile: float) -> list[str]:
    """Layers whose rate lies below a percentile of all rates.

    Example:
        >>> from smartfrz_lightning.callbacks.auto import below_percentile
        >>> below_percentile({"a": 0.1, "b": 0.4, "c": 0.2, "d": 0.3}, 50)
        ['a', 'c']
    """
    limit = torch.quantile(torch.tensor(list(rates.values()), dtype=torch.float64), percentile / 100)
    return [name for name, rate in rates.items() if rate < limit]
