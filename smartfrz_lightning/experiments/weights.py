"""Load pretrained weights from a file into a network."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn


def load_weights(network: nn.Module, path: str, fresh: Sequence[str] = ()) -> None:
    """Load a safetensors file, a state dict or the ``network`` of a Lightning checkpoint; nothing is unpickled.

    Args:
        network: Takes the weights.
        path: The file.
        fresh: Patterns of entries to leave as they are, such as ``"linear.*"`` for a new head.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It does not fit, or a pattern matches nothing in the network.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights={path!r}: no such file")
    state: dict[str, Any] = (
        dict(load_file(path)) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    )
    state = state.get("state_dict", state)
    state = {name.removeprefix("network."): tensor for name, tensor in state.items()}
    own = network.state_dict()
    for pattern in fresh:
        if not fnmatch.filter(own, pattern):
            raise ValueError(f"fresh={pattern!r} matches nothing in the network; its entries are {list(own)[-4:]}")
    kept = {name for pattern in fresh for name in fnmatch.filter(own, pattern)}
    kept |= {name for name in own if name.endswith("num_batches_tracked") and name not in state}  # older files
    wrong = [n for n in own if n not in kept and (n not in state or state[n].shape != own[n].shape)]
    if wrong:
        raise ValueError(
            f"weights={path!r} does not fit the network: {len(wrong)} entries are missing or of another shape, "
            f"{wrong[:3]}. Give weights of this network, or name what should start afresh with fresh="
        )
    network.load_state_dict({n: own[n] if n in kept else state[n] for n in own})
