"""RateWatch: whether learning rates rise."""

from typing import Any

from torch.optim import Optimizer


class RateWatch:
    """Compares the learning rates of each optimizer from one step to the next."""

    def __init__(self) -> None:
        self._rates: dict[int, list[float]] = {}
        self._rising: dict[int, bool] = {}

    @property
    def rising(self) -> bool:
        """Whether a rate was higher in the latest step than in the one before."""
        return any(self._rising.values())

    def note(self, optimizers: Any, optimizer: Optimizer) -> None:
        """An optimizer of these is about to step."""
        number = next((n for n, one in enumerate(optimizers) if one is optimizer), 0)
        now = [float(group["lr"]) for group in optimizer.param_groups]
        before = self._rates.get(number, now)
        self._rising[number] = any(new > old for new, old in zip(now, before, strict=False))
        self._rates[number] = now

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"rates": dict(self._rates), "rising": dict(self._rising)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self._rates, self._rising = dict(state["rates"]), dict(state["rising"])
