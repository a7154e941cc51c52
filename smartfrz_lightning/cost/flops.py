"""FLOPs of training steps: forward, weight gradients and activation gradients apart."""

from dataclasses import dataclass


@dataclass
class StepFlops:
    """Floating-point operations of training steps; a multiply-add counts as two.

    Examples:
        >>> from smartfrz_lightning.cost import StepFlops
        >>> run = StepFlops()
        >>> run.add(StepFlops(forward=60, weight_gradient=60, activation_gradient=50).times(10))
        >>> run
        StepFlops(forward=600, weight_gradient=600, activation_gradient=500)
        >>> run.total
        1700
    """

    forward: float = 0
    weight_gradient: float = 0
    activation_gradient: float = 0

    @property
    def total(self) -> float:
        """All three together."""
        return self.forward + self.weight_gradient + self.activation_gradient

    def add(self, other: "StepFlops") -> None:
        """Add the FLOPs of other steps."""
        self.forward += other.forward
        self.weight_gradient += other.weight_gradient
        self.activation_gradient += other.activation_gradient

    def times(self, steps: float) -> "StepFlops":
        """FLOPs of so many of these steps."""
        return StepFlops(steps * self.forward, steps * self.weight_gradient, steps * self.activation_gradient)
