"""Files of tensors with a description: safetensors with JSON in its metadata, never unpickled."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write the file in one piece: it is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(own, partial, {"smartfrz": json.dumps(dict(about))})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file: its tensors by name, and what is said of them; nothing is said in files of others."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("smartfrz", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is cut short or not a safetensors file ({error})") from error
