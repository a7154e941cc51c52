"""StepHooks: notices when optimizers step."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class StepHooks:
    """Hooks on optimizers."""

    def __init__(self, before: Callable[[Optimizer], None], after: Callable[[Optimizer], None]) -> None:
        self._before, self._after = before, after
        self._hooks: list[Any] = []
        self._stepped = False
        self._seen: set[int] = set()  # optimizers whose gradients are known already for the step that comes

    def register(self, optimizers: Sequence[Optimizer]) -> None:
        """Watch these."""
        for optimizer in optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._about_to_step))
            self._hooks.append(optimizer.register_step_post_hook(self._has_stepped))

    def seen(self, optimizer: Optimizer) -> None:
        """The gradients of the step that comes are known by other means."""
        self._seen.add(id(optimizer))

    def take(self) -> bool:
        """Whether any has stepped since this was asked last."""
        stepped, self._stepped = self._stepped, False
        self._seen.clear()
        return stepped

    def remove(self) -> None:
        """Watch no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _about_to_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first is the optimizer itself
        if closure is None and id(optimizer) not in self._seen:  # with a closure, there are no gradients yet
            self._before(optimizer)
        self._seen.discard(id(optimizer))

    def _has_stepped(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self._stepped = True
        self._after(optimizer)


def has_stepped(optimizer: Optimizer) -> bool:
    """Whether an optimizer has stepped, as far as its state shows."""
    return any(
        (value > 0 if isinstance(value, int | float) else bool(value.any()))
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, int | float | Tensor) and (key == "step" or "step" not in state)
    )
