"""Cheaper training with PyTorch Lightning: find out which layers need not train, and stop paying for them."""

from smartfrz_lightning.callbacks.attention import AttentionFreezeCallback
from smartfrz_lightning.callbacks.auto import AutoFreezeCallback
from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.callbacks.budget import BudgetFreezeCallback
from smartfrz_lightning.callbacks.grades import GradESFreezeCallback
from smartfrz_lightning.callbacks.gradient_norm import GradientNormFreezeCallback
from smartfrz_lightning.callbacks.interval import IntervalFreezeCallback
from smartfrz_lightning.callbacks.linear import LinearFreezeCallback
from smartfrz_lightning.callbacks.movement import MovementFreezeCallback
from smartfrz_lightning.callbacks.plan import PlanCallback
from smartfrz_lightning.callbacks.random import RandomFreezeCallback
from smartfrz_lightning.callbacks.recorder import HistoryRecorder
from smartfrz_lightning.callbacks.similarity import SimilarityFreezeCallback
from smartfrz_lightning.callbacks.smart import SmartFreezeCallback
from smartfrz_lightning.callbacks.static import StaticFreezeCallback
from smartfrz_lightning.callbacks.windowed import WindowedFreezingCallback
from smartfrz_lightning.engine import Decision, Freezer, FreezingMethod, TrainingRun
from smartfrz_lightning.version import __version__

__all__ = [
    "AttentionFreezeCallback",
    "AutoFreezeCallback",
    "BudgetFreezeCallback",
    "Decision",
    "Freezer",
    "FreezingCallback",
    "FreezingMethod",
    "GradESFreezeCallback",
    "GradientNormFreezeCallback",
    "HistoryRecorder",
    "IntervalFreezeCallback",
    "LinearFreezeCallback",
    "MovementFreezeCallback",
    "PlanCallback",
    "RandomFreezeCallback",
    "SimilarityFreezeCallback",
    "SmartFreezeCallback",
    "StaticFreezeCallback",
    "TrainingRun",
    "WindowedFreezingCallback",
    "__version__",
]
