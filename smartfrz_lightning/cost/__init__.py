"""What a real training step costs: FLOPs, of which layer, and bytes kept for the backward pass."""

from smartfrz_lightning.cost.flops import StepFlopCounter, StepFlops
from smartfrz_lightning.cost.layer_flops import LayerFlops, flops_when_frozen
from smartfrz_lightning.cost.memory import SavedActivations
from smartfrz_lightning.cost.step_meter import StepMeter

__all__ = ["LayerFlops", "SavedActivations", "StepFlopCounter", "StepFlops", "StepMeter", "flops_when_frozen"]
