"""FLOPs of training steps: forward, weight gradients and activation gradients apart."""

from dataclasses import dataclass


@dataclass
class StepFlops:
    """Floating-point operations of training steps; a multiply-add counts as two."""

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
