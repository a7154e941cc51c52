"""LogisticPredictor: log-odds from a few named inputs, and the file that they live in."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from smartfrz_lightning.history.tensor_file import write_tensors
from smartfrz_lightning.predictor.weights import read_predictor


class LogisticPredictor(nn.Module):
    """A logistic regression that says how likely freezing a prefix is safe.

    A kind of predictor says what its inputs are and how its files are marked.
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

        def make(header: dict[str, Any]) -> Self:
            return cls(**{name: value for name, value in header.items() if name != "about"})

        return read_predictor(cls.shipped if path is None else Path(path), cls.kind, cls.version, make)
