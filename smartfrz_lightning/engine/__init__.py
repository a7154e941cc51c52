"""Freezing while any loop trains: when to ask a method, how all processes agree, and how its answer is applied."""

from smartfrz_lightning.engine.freezer import Freezer
from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.rule import Decision, FreezingRule
from smartfrz_lightning.engine.run import TrainingRun

__all__ = ["Decision", "Freezer", "FreezingMethod", "FreezingRule", "TrainingRun"]
