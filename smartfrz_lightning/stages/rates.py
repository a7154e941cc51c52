"""RateWatch: whether learning rates rise."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer


class RateWatch:
    """Compares the learning rates of the next step with those of the latest one."""

    def __init__(self) -> None:
        self._latest: list[float] = []

    def note(self, optimizers: Sequence[Optimizer]) -> None:
        """A step is about to be taken with these."""
        self._latest = _rates(optimizers)

    def rising(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether a rate of the next step is higher than it was in the latest one."""
        return any(now > before for before, now in zip(self._latest, _rates(optimizers), strict=False))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"latest": list(self._latest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self._latest = list(state["latest"])


def _rates(optimizers: Sequence[Optimizer]) -> list[float]:
    return [float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
