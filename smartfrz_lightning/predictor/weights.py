"""SavedPredictor: a network in one safetensors file, never unpickled."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Self

from smartfrz_lightning.history.tensor_file import read_tensors, write_tensors

_PACKAGE = Path(__file__).parents[1]
# In an installed wheel the weights lie inside the package, in a source tree beside it.
_FOLDERS = [folder / "predictor_weights" for folder in (_PACKAGE, _PACKAGE.parent)]
SHIPPED = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
"""Folder of the predictors that ship with the package."""


class SavedPredictor(nn.Module):
    """A kind of predictor says how its files are marked, and passes on what it was made with."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    shipped: ClassVar[Path]

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self._arguments = arguments
        self.about: dict[str, Any] = {}
        """What was said of it when it was saved."""

    def save(self, path: str | Path, **about: Any) -> None:
        """Write one safetensors file, with the construction and ``about`` as JSON in its metadata."""
        header = {"format": self.kind, "version": self.version, **self._arguments, "about": about}
        write_tensors(path, self.state_dict(), header)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Read a file, ready for inference; the predictor that ships with the package by default.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is cut short, or of another kind or version.
        """
        path = cls.shipped if path is None else Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"predictor={str(path)!r}: no such file; leave it out for the shipped one")
        try:
            tensors, header = read_tensors(path)
        except ValueError as error:
            raise ValueError(f"predictor={error}") from error
        if (found := (header.pop("format", None), header.pop("version", None))) != (cls.kind, cls.version):
            raise ValueError(
                f"predictor={str(path)!r} is no {cls.kind} of version {cls.version}, but {found[0]} of version "
                f"{found[1]}: SmartFreezeCallback has one for its start stage and one for its later stage, and "
                "AttentionFreezeCallback one of windows of weights"
            )
        try:
            about = header.pop("about")
            with torch.random.fork_rng(devices=[]):  # the user's model is yet to draw its weights
                # Files of windows have them under that name; the default dtype may be another one.
                predictor = cls(**header.get("arguments", header)).float()
            predictor.load_state_dict(tensors)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"predictor={str(path)!r} does not fit its own description: {error}") from error
        predictor.about = about
        return predictor.eval().requires_grad_(False)
