"""What a layer of any model is, and how the layers of a model are found, in forward order."""

from smartfrz_lightning.layers.layer import Layer, connected, front, matches
from smartfrz_lightning.layers.tracer import LayerTracer, find_layers

__all__ = ["Layer", "LayerTracer", "connected", "find_layers", "front", "matches"]
