"""GradientNormFreezeCallback: the front grows to the layer of least gradient norm (PipeTransformer)."""

from typing import Any

from torch.optim import Optimizer

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.callbacks.gradients import LayerGradients
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.layers.layer import connected


class GradientNormFreezeCallback(FreezingCallback):
    r"""The freezing rule of PipeTransformer (He et al. 2021, section 3.1).

    With F of L layers frozen, a check freezes the front up to
    ``min(F + alpha * (L - F), argmin_l ||g_l||)`` layers, l counted from F on: all layers before the one with the least
    gradient norm, but no more than a share ``alpha`` of those that are left. The norm is the L2 norm of the gradients
    summed since the check before. Nothing freezes at the first check.

    - **When**: to compare with.
    - **When not**: accuracy matters more than speed: it freezes up to the least gradient, however large that is.
    - **Cost**: one buffer the size of the trainable weights.
    - **Source**: He et al. 2021, "PipeTransformer: Automated Elastic Pipelining for Distributed Training".

    Args:
        alpha: Between 0 and 1; how much of what is left may freeze at once.
        kwargs: Arguments of ``FreezingCallback``, such as ``exclude``.

    Raises:
        ValueError: ``alpha`` is out of range, or both intervals are given.
    """

    works_sharded = False

    def __init__(self, alpha: float = 1 / 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha={alpha}: must lie above 0 and be at most 1")
        self.alpha = alpha

    def reset(self) -> None:
        self._gradients = LayerGradients()
        self._checks = 0

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        if run.is_first_process:
            self._gradients.add(run.model, run.layers, optimizer)

    def select(self, run: TrainingRun) -> list[str]:
        used = [layer for layer in run.layers if layer.always_trains != "unused"]
        norms = list(self._gradients.norms(used).values())
        self._gradients.clear()
        self._checks += 1
        if self._checks == 1:
            return []
        active = run.active  # behind the last frozen one: a layer before it may always train
        frozen = 1 + max((number for number, layer in enumerate(used) if layer.name in run.frozen), default=-1)
        least = min(range(frozen, len(norms)), key=lambda number: norms[number])
        size = min(int(frozen + self.alpha * (len(norms) - frozen)), least)
        ready = {layer.name for layer in used[:size] if layer in active}
        return connected(run.layers, run.frozen, ready)

    def method_state(self) -> dict[str, Any]:
        return {"gradients": self._gradients.state_dict(), "checks": self._checks}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        self._gradients.load_state_dict(state["gradients"])
        self._checks = state["checks"]
