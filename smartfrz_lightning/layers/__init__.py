"""What a layer of any model is, and how the layers of a model are found, in forward order."""

from smartfrz_lightning.layers.finder import LayerWatch, find_layers
from smartfrz_lightning.layers.layer import Layer, connected, matches

__all__ = ["Layer", "LayerWatch", "connected", "find_layers", "matches"]
