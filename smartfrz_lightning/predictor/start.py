"""The start predictor: how likely it does no harm to hold a front from the first step on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.history.tensor_file import read_tensors, write_tensors
from smartfrz_lightning.predictor.start_inputs import INPUTS
from smartfrz_lightning.predictor.weights import SHIPPED

FORMAT, VERSION = "smartfrz-start-predictor", 1
SHIPPED_START = SHIPPED.with_name("start.safetensors")


class StartPredictor(nn.Module):
    """Tell from a probe which fronts of a network may be held.

    Args:
        inputs: Which of :data:`~smartfrz_lightning.predictor.start_inputs.INPUTS` it looks at.
        hidden: Size of the attention over all fronts of a network; 0 for a logistic regression on each by itself.
        heads: Of the attention.
        floors: Values up to which some of the inputs say nothing.

    Raises:
        ValueError: An input is unknown.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> from smartfrz_lightning.predictor.start_inputs import INPUTS
        >>> predictor = StartPredictor(["depth", "front_to_all"])
        >>> predictor(torch.rand(12, len(INPUTS))).shape
        torch.Size([12])
    """

    mean: Tensor
    scale: Tensor
    _floor: Tensor

    def __init__(
        self,
        inputs: Sequence[str] = INPUTS,
        hidden: int = 0,
        heads: int = 4,
        floors: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if unknown := set(inputs) - set(INPUTS):
            raise ValueError(f"inputs={sorted(unknown)}: not among {', '.join(INPUTS)}")
        self.floors = dict(floors or {})
        if unknown := set(self.floors) - set(inputs):
            raise ValueError(f"floors of {sorted(unknown)}: not among the inputs {', '.join(inputs)}")
        self.inputs, self.hidden, self.heads = list(inputs), hidden, heads
        lowest = torch.tensor([self.floors.get(name, -math.inf) for name in inputs])
        self.register_buffer("_floor", lowest, persistent=False)  # it is in the header
        self.register_buffer("mean", torch.zeros(len(inputs)))
        self.register_buffer("scale", torch.ones(len(inputs)))
        self.attention: nn.Module | None = None
        if hidden:
            block = nn.TransformerEncoderLayer(hidden, heads, 2 * hidden, dropout=0.0, batch_first=True)
            self.attention = nn.Sequential(
                nn.Linear(len(inputs), hidden), nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
            )
        self.score = nn.Linear(hidden or len(inputs), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-odds that holding a front does no harm.

        Args:
            inputs: ``[fronts, inputs]`` of :func:`~smartfrz_lightning.predictor.start_inputs.start_inputs`, all fronts
                of one network.

        Returns:
            ``[fronts]``.
        """
        seen = inputs[:, [INPUTS.index(name) for name in self.inputs]].maximum(self._floor)
        seen = (seen - self.mean) / self.scale
        if self.attention is not None:
            seen = self.attention(seen[None])[0]
        return self.score(seen)[:, 0]

    def save(self, path: str | Path, **about: Any) -> None:
        """Write one safetensors file, with the construction and ``about`` in its metadata."""
        arguments = {"inputs": self.inputs, "hidden": self.hidden, "heads": self.heads, "floors": self.floors}
        header = {"format": FORMAT, "version": VERSION, "arguments": arguments, "about": about}
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
                "weights belong to start='none'"
            )
        try:
            with torch.random.fork_rng(devices=[]):  # the user's model is yet to draw its weights
                predictor = cls(**header["arguments"])
            predictor.load_state_dict(tensors)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"predictor={str(path)!r} does not fit its own description: {error}") from error
        return predictor.eval().requires_grad_(False)
