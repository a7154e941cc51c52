"""What SmartFreezeCallback is made of: a choice at the start, a trial of it, and what freezes later."""

from smartfrz_lightning.stages.interval import IntervalStage
from smartfrz_lightning.stages.later import LaterStage
from smartfrz_lightning.stages.schedule import Schedule
from smartfrz_lightning.stages.stage import Stage
from smartfrz_lightning.stages.start import StartStage
from smartfrz_lightning.stages.verify import VerifyStage

__all__ = ["IntervalStage", "LaterStage", "Schedule", "Stage", "StartStage", "VerifyStage"]
