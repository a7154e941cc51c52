"""The start and the later predictor, and the attention predictor of windows: inputs, training, weights, use."""

from smartfrz_lightning.predictor.inference import freeze_confidence
from smartfrz_lightning.predictor.later import LaterPredictor
from smartfrz_lightning.predictor.network import AttentionPredictor
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.weights import load_predictor, save_predictor

__all__ = [
    "AttentionPredictor",
    "LaterPredictor",
    "StartPredictor",
    "freeze_confidence",
    "load_predictor",
    "save_predictor",
]
