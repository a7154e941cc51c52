"""How alike the layers of two models are: CKA, and the finished reference that a training model is held against."""

from smartfrz_lightning.similarity.cka import gram_cka, unbiased_gram
from smartfrz_lightning.similarity.features import layer_grams
from smartfrz_lightning.similarity.reference import load_reference
from smartfrz_lightning.similarity.reference_probe import ReferenceProbe

__all__ = ["ReferenceProbe", "gram_cka", "layer_grams", "load_reference", "unbiased_gram"]
