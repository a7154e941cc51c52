"""GradESFreezeCallback: a layer freezes once its gradient hardly changes any more (GradES)."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.callbacks.gradients import gradients_of
from smartfrz_lightning.engine.run import TrainingRun


class GradESFreezeCallback(FreezingCallback):
    r"""GradES (Wen et al. 2025, arXiv 2509.01842): early stopping of single matrices by their gradients.

    After a grace period, a layer freezes when ``|| g_t - g_{t-1} ||_1``, summed over the elements of its weights, falls
    below ``tau``; each layer for itself, and for good. The sources leave open: a unit is a layer as this package finds
    it, so the three projections that one module holds in one matrix freeze together, and norms and biases freeze with
    the layer that they belong to; gradients are those that the optimizer steps with, averaged over processes and before
    clipping.

    - **When**: transformers with AdamW, as in its paper, with a ``tau`` tuned for the model.
    - **When not**: you cannot tune ``tau``: gradients differ by orders of magnitude from network to network.
    - **Cost**: a copy of the gradients.
    - **Source**: Wen et al. 2025, "GradES: Significantly Faster Training in Transformers with Gradient-Based Early
      Stopping" (arXiv 2509.01842).

    Args:
        tau: Threshold. The norm grows with the size of a layer and the scale of the loss, so there is no default: the
            paper tunes it for every model.
        grace: Share of the run in which nothing freezes.
        kwargs: Arguments of ``FreezingCallback``, such as ``exclude``.

    Raises:
        ValueError: An argument is out of range; on ``fit``: the run has no known length.
    """

    works_sharded = False

    def __init__(self, tau: float, grace: float = 0.5, **kwargs: Any) -> None:
        super().__init__(every_n_train_steps=1, **kwargs)
        if not tau > 0:
            raise ValueError(f"tau={tau}: must be above 0")
        if not 0 <= grace < 1:
            raise ValueError(f"grace={grace}: must be at least 0 and below 1, as a share of the run")
        self.tau = tau
        self.grace = grace

    def reset(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}

    def start(self, run: TrainingRun) -> None:
        run.require_length("GradESFreezeCallback")

    @torch.no_grad()
    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        # The first step that counts is compared with the last one of the grace period.
        if not run.is_first_process or (run.progress or 0.0) + 2 / max(1.0, run.total_batches) < self.grace:
            return
        gradients = gradients_of(run.model, (name for layer in run.active for name in layer.weights), optimizer)
        for layer in run.active:
            own = [name for name in layer.weights if name in gradients]
            if own and all(name in self._before for name in own):
                moved = [(gradients[name] - self._before[name]).abs().sum() for name in own]
                self._norms[layer.name] = torch.stack(moved).sum()
        self._before |= {name: gradient.clone() for name, gradient in gradients.items()}

    def check_due(self, run: TrainingRun) -> bool:
        return (run.progress or 0.0) >= self.grace

    def select(self, run: TrainingRun) -> list[str]:
        known = [layer.name for layer in run.active if layer.name in self._norms]
        norms = torch.stack([self._norms[name] for name in known]).tolist() if known else []
        return [name for name, norm in zip(known, norms, strict=True) if norm < self.tau]

    def changed(self, run: TrainingRun, frozen: Any, thawed: Any) -> None:
        for layer in run.frozen_layers:
            self._norms.pop(layer.name, None)
            for name in layer.weights:
                self._before.pop(name, None)

    def method_state(self) -> dict[str, Any]:
        return {"before": self._before, "norms": self._norms}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        self._before, self._norms = dict(state["before"]), dict(state["norms"])
