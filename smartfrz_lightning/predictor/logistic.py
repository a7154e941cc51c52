"""LogisticPredictor: log-odds from a few named inputs, and the file that they live in."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from smartfrz_lightning.history.tensor_file import read_tensors, write_tensors


class LogisticPredictor(nn.Module):
    """A logistic regression that says how likely freezing a prefix is safe.

    A kind of predictor says what its inputs are and how its files are marked.

    Args:
        options: What else a file has to tell.
    """

    inputs: ClassVar[tuple[str, ...]]
    kind: ClassVar[str]
    version: ClassVar[int] = 1
    shipped: ClassVar[Path]

    mean: Tensor
    scale: Tensor

    def __init__(self, **options: float) -> None:
        super().__init__()
        self._options = options
        self.register_buffer("mean", torch.zeros(len(self.inputs)))
        self.register_buffer("scale", torch.ones(len(self.inputs)))
        self.score = nn.Linear(len(self.inputs), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-odds that freezing a prefix is safe.

        Args:
            inputs: ``[prefixes, inputs]``.

        Returns:
            ``[prefixes]``.
        """
        return self.score((inputs - self.mean) / self.scale)[:, 0]

    def save(self, path: str | Path, **about: Any) -> None:
        """Write one safetensors file, with the construction and ``about`` in its metadata."""
        header = {"format": self.kind, "version": self.version, **self._options, "about": about}
        write_tensors(path, self.state_dict(), header)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Read a file, ready for inference; the predictor that ships with the package by default.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is cut short, or of another format or version.
        """
        path = cls.shipped if path is None else Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"predictor={str(path)!r}: no such file; leave it out for the shipped one")
        try:
            tensors, header = read_tensors(path)
        except ValueError as error:
            raise ValueError(f"predictor={error}") from error
        if (header.pop("format", None), header.pop("version", None)) != (cls.kind, cls.version):
            raise ValueError(
                f"predictor={str(path)!r} is no {cls.kind} of version {cls.version}: those that judge windows of "
                "weights belong to AttentionFreezeCallback"
            )
        header.pop("about", None)
        try:
            with torch.random.fork_rng(devices=[]):  # the user's model is yet to draw its weights
                predictor = cls(**header)
            predictor.load_state_dict(tensors)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"predictor={str(path)!r} does not fit its own description: {error}") from error
        return predictor.eval().requires_grad_(False)
