"""What SmartFreezeCallback is made of: a choice at the start, a trial of it, and the attention predictor."""

from smartfrz_lightning.stages.attention import AttentionStage
from smartfrz_lightning.stages.schedule import Schedule
from smartfrz_lightning.stages.stage import Stage
from smartfrz_lightning.stages.start import StartStage
from smartfrz_lightning.stages.verify import VerifyStage

__all__ = ["AttentionStage", "Schedule", "Stage", "StartStage", "VerifyStage"]
