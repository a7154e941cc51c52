"""Read the weights of a finished reference model."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def load_reference(path: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Weights of a finished model of the same architecture, from a Lightning checkpoint or a safetensors file.

    They are read onto the CPU, without unpickling objects.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"reference={str(path)!r}: no such file; give the checkpoint of a finished run")
    try:
        if Path(path).suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise ValueError(f"reference={str(path)!r} cannot be read: {error}") from error
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    other = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or unknown or other:
        raise ValueError(
            f"reference={str(path)!r} is of another architecture: {len(missing)} entries missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}, {len(other)} of another shape {sorted(other)[:2]}. "
            "Give a checkpoint of the model that trains here"
        )
    return state
