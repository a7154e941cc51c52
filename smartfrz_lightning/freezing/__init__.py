"""What stopping means: freeze and thaw, and what wrappers and compiled code need for it."""

from smartfrz_lightning.freezing.freeze import freeze, hold_still, thaw

__all__ = ["freeze", "hold_still", "thaw"]
