"""Save and load predictors: one safetensors file, never unpickled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from smartfrz_lightning.history.tensor_file import read_tensors, write_tensors
from smartfrz_lightning.predictor.network import AttentionPredictor

Module = TypeVar("Module", bound=nn.Module)

FORMAT = "smartfrz-predictor"
VERSION = 1
_PACKAGE = Path(__file__).parents[1]
# In an installed wheel the weights lie inside the package, in a source tree beside it.
SHIPPED = (
    next(
        (path for path in (_PACKAGE / "predictor_weights", _PACKAGE.parent / "predictor_weights") if path.is_dir()),
        _PACKAGE / "predictor_weights",
    )
    / "displacement.safetensors"
)


def save_predictor(predictor: AttentionPredictor, path: str | Path, **about: Any) -> None:
    """Write a predictor to one safetensors file, with its construction and ``about`` as JSON in the metadata."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "arguments": {
            "sample_size": predictor.sample_size,
            "hidden": predictor.key[0].out_features,
            "features": predictor.key[-1].out_features,
            "decision_hidden": predictor.decision[0].out_features,
            "representation": predictor.representation,
        },
        "about": about,
    }
    write_tensors(path, predictor.state_dict(), header)


def load_predictor(path: str | Path | None = None) -> AttentionPredictor:
    """Read a predictor, ready for inference.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut short, or of another format or version.
    """

    def make(header: dict[str, Any]) -> AttentionPredictor:
        predictor = AttentionPredictor(**header["arguments"])
        predictor.window = int(header["about"].get("window", predictor.window))
        return predictor

    return read_predictor(SHIPPED if path is None else Path(path), FORMAT, VERSION, make)


def read_predictor(path: Path, kind: str, version: int, make: Callable[[dict[str, Any]], Module]) -> Module:
    """Read a file of a predictor, ready for inference.

    Args:
        path: The file.
        kind: Its format.
        version: Of the format.
        make: Makes the predictor from what stands in the file's metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut short, or of another kind or version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"predictor={str(path)!r}: no such file; leave it out for the shipped one")
    try:
        tensors, header = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"predictor={error}") from error
    if (found := (header.pop("format", None), header.pop("version", None))) != (kind, version):
        raise ValueError(
            f"predictor={str(path)!r} is no {kind} of version {version}, but {found[0]} of version {found[1]}: "
            "SmartFreezeCallback has one for its start stage and one for its later stage, and AttentionFreezeCallback "
            "one of windows of weights"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # the user's model is yet to draw its weights
            predictor = make(header)
        predictor.load_state_dict(tensors)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"predictor={str(path)!r} does not fit its own description: {error}") from error
    return predictor.eval().requires_grad_(False)
