"""The later predictor: p(safe) of freezing a prefix from a moment of the run to its end."""

from smartfrz_lightning.predictor.later_inputs import INPUTS
from smartfrz_lightning.predictor.logistic import LogisticPredictor
from smartfrz_lightning.predictor.weights import SHIPPED


class LaterPredictor(LogisticPredictor):
    """A logistic regression on the depth of a prefix, what is left of the run, and how far the loss has fallen."""

    inputs = INPUTS
    kind = "smartfrz-later-predictor"
    shipped = SHIPPED.with_name("later.safetensors")
