"""What a training step costs in FLOPs, and what it would cost with any layers frozen."""

from smartfrz_lightning.cost.flops import StepFlops
from smartfrz_lightning.cost.forward import ForwardFlops
from smartfrz_lightning.cost.meter import CostMeter, batch_size
from smartfrz_lightning.cost.step_cost import LayerFlops, StepCost, step_cost

__all__ = ["CostMeter", "ForwardFlops", "LayerFlops", "StepCost", "StepFlops", "batch_size", "step_cost"]
