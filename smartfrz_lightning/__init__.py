"""Cheaper training with PyTorch Lightning: freeze each layer once it has converged."""

__version__ = "0.1.0"

from smartfrz_lightning.callbacks.recorder import HistoryRecorder
from smartfrz_lightning.callbacks.smart import SmartFreezeCallback

__all__ = ["HistoryRecorder", "SmartFreezeCallback"]
