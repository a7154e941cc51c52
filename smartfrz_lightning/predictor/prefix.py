"""The prefix predictor: p(safe) of freezing a prefix from a moment of the run to its end."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.history.tensor_file import read_tensors, write_tensors
from smartfrz_lightning.predictor.network import AttentionPredictor
from smartfrz_lightning.predictor.prefix_inputs import CONTEXT, SEEN
from smartfrz_lightning.predictor.weights import SHIPPED

FORMAT, VERSION = "smartfrz-prefix-predictor", 1
SHIPPED_PREFIX = SHIPPED.with_name("prefix.safetensors")


class PrefixPredictor(nn.Module):
    """The paper's attention over the window of snapshots (Eq. 1 to 4), and a line through the context.

    Args:
        hidden: Hidden size of the encoders.
        features: Size of keys, queries and values.
        decision_hidden: Hidden size of the last MLP.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.predictor.prefix import PrefixPredictor
        >>> PrefixPredictor()(torch.rand(12, 7, 2), torch.rand(12, 2)).shape
        torch.Size([12])
    """

    def __init__(self, hidden: int = 16, features: int = 4, decision_hidden: int = 8) -> None:
        super().__init__()
        self._sizes = {"hidden": hidden, "features": features, "decision_hidden": decision_hidden}
        self.attention = AttentionPredictor(len(SEEN), **self._sizes, representation="raw")
        self.context = nn.Linear(len(CONTEXT) + len(SEEN), 1)

    def forward(self, seen: Tensor, context: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log-odds that freezing a prefix from now to the end is safe.

        Args:
            seen: ``[prefixes, snapshots, inputs]`` of
                :func:`~smartfrz_lightning.predictor.prefix_inputs.prefix_inputs`.
            context: ``[prefixes, inputs]`` of the same.
            lengths: ``[prefixes]`` snapshots of each where some have fewer and are padded at the end; all by default.

        Returns:
            ``[prefixes]``.
        """
        latest = seen[:, -1] if lengths is None else seen[torch.arange(len(seen)), lengths - 1]
        scores = self.attention(seen, lengths)
        return scores[:, 1] - scores[:, 0] + self.context(torch.cat([context, latest], 1))[:, 0]

    def save(self, path: str | Path, **about: Any) -> None:
        """Write one safetensors file, with the sizes and ``about`` in its metadata."""
        write_tensors(
            path, self.state_dict(), {"format": FORMAT, "version": VERSION, "sizes": self._sizes, "about": about}
        )

    @classmethod
    def load(cls, path: str | Path | None = None) -> "PrefixPredictor":
        """Read a file, ready for inference; the predictor that ships with the package by default.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is cut short, or of another format or version.
        """
        path = SHIPPED_PREFIX if path is None else Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"predictor={str(path)!r}: no such file; leave it out for the shipped one")
        try:
            tensors, header = read_tensors(path)
        except ValueError as error:
            raise ValueError(f"predictor={error}") from error
        if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
            raise ValueError(
                f"predictor={str(path)!r} is no prefix predictor of version {VERSION}: those that judge windows of "
                "weights belong to AttentionFreezeCallback"
            )
        try:
            with torch.random.fork_rng(devices=[]):  # the user's model is yet to draw its weights
                predictor = cls(**header["sizes"])
            predictor.load_state_dict(tensors)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"predictor={str(path)!r} does not fit its own description: {error}") from error
        return predictor.eval().requires_grad_(False)
