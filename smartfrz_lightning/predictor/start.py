"""The start predictor: p(safe) of freezing a prefix from the first step on."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.history.tensor_file import read_tensors, write_tensors
from smartfrz_lightning.predictor.start_inputs import INPUTS
from smartfrz_lightning.predictor.weights import SHIPPED

FORMAT, VERSION = "smartfrz-start-predictor", 2
SHIPPED_START = SHIPPED.with_name("start.safetensors")


class StartPredictor(nn.Module):
    """A logistic regression on what a probe shows of a prefix.

    Args:
        shift_floor: Value of the input ``shift`` up to which it says nothing.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> StartPredictor.load()(torch.rand(12, 5)).shape
        torch.Size([12])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shift_floor: float = -math.inf) -> None:
        super().__init__()
        self.shift_floor = shift_floor
        self.register_buffer("mean", torch.zeros(len(INPUTS)))
        self.register_buffer("scale", torch.ones(len(INPUTS)))
        self.score = nn.Linear(len(INPUTS), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-odds that freezing a prefix is safe.

        Args:
            inputs: ``[prefixes, inputs]`` of :func:`~smartfrz_lightning.predictor.start_inputs.start_inputs`.

        Returns:
            ``[prefixes]``.
        """
        seen = torch.cat([inputs[:, :-1], inputs[:, -1:].clamp(min=self.shift_floor)], 1)
        return self.score((seen - self.mean) / self.scale)[:, 0]

    def save(self, path: str | Path, **about: Any) -> None:
        """Write one safetensors file, with the construction and ``about`` in its metadata."""
        header = {"format": FORMAT, "version": VERSION, "shift_floor": self.shift_floor, "about": about}
        write_tensors(path, self.state_dict(), header)

    @classmethod
    def load(cls, path: str | Path | None = None) -> "StartPredictor":
        """Read a file, ready for inference; the predictor that ships with the package by default.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is cut short, or of another format or version.
        """
        path = SHIPPED_START if path is None else Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"predictor={str(path)!r}: no such file; leave it out for the shipped one")
        try:
            tensors, header = read_tensors(path)
        except ValueError as error:
            raise ValueError(f"predictor={error}") from error
        if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
            raise ValueError(
                f"predictor={str(path)!r} is no start predictor of version {VERSION}: those that judge windows of "
                "weights belong to AttentionStage and AttentionFreezeCallback"
            )
        try:
            with torch.random.fork_rng(devices=[]):  # the user's model is yet to draw its weights
                predictor = cls(header["shift_floor"])
            predictor.load_state_dict(tensors)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"predictor={str(path)!r} does not fit its own description: {error}") from error
        return predictor.eval().requires_grad_(False)
