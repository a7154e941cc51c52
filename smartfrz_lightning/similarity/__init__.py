"""How alike the layers of two models are: CKA, and the finished reference that a training model is held against."""
