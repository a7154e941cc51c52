"""The start and the later predictor, and the attention predictor of windows: inputs, training, weights, use."""

from smartfrz_lightning.predictor.later import LaterPredictor
from smartfrz_lightning.predictor.network import AttentionPredictor
from smartfrz_lightning.predictor.start import StartPredictor

__all__ = ["AttentionPredictor", "LaterPredictor", "StartPredictor"]
