"""How a saved freezing training is checked before it is taken up."""

from typing import Any

from torch import nn

VERSION = 9


def check_version(state: dict[str, Any], method: str) -> None:
    """Raise ``ValueError`` if a saved state is not one that this package reads."""
    if state.get("version") != VERSION:
        raise ValueError(
            f"the checkpoint holds a {method} of state version {state.get('version')}, this package reads {VERSION}: "
            "resume with the package that wrote it"
        )


def lost(state: dict[str, Any], model: nn.Module) -> list[str]:
    """Parameters of the layers in a saved state that a model does not have."""
    known = dict(model.named_parameters())
    return [name for layer in state["timeline"]["layers"] for name in layer["parameters"] if name not in known]
