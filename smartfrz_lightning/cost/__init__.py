"""What a training step costs in FLOPs, and what it would cost with any layers frozen."""
