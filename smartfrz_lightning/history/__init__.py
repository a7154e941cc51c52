"""Tailored snapshots of weights, the window of the latest ones, and recordings of whole runs on disk."""

from smartfrz_lightning.history.recording import Recording
from smartfrz_lightning.history.sampling import WeightSampler, sample_indices
from smartfrz_lightning.history.window import WeightHistory, snapshot_spacing

__all__ = ["Recording", "WeightHistory", "WeightSampler", "sample_indices", "snapshot_spacing"]
