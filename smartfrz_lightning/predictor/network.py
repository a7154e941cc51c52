"""The attention predictor (paper, section 3.3 and appendix C)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from smartfrz_lightning.predictor.weights import SHIPPED, SavedPredictor

Representation = Literal["raw", "displacement"]

# Displacements below this share of the layer's spread count as none.
_FLOOR = 1e-6


def represent(windows: Tensor, lengths: Tensor, representation: Representation) -> Tensor:
    """One vector a snapshot, from windows of sampled weights.

    ``"raw"`` is the paper's: the sampled weights as they are. ``"displacement"`` does not depend on the scale or the
    meaning of single weights, and so carries over to other networks: how far the weights are from those of the first
    and of the latest snapshot of the window, in units of the layer's standard deviation, as logarithms of quantiles of
    the absolute values; half of the vector each.
    """
    check_representation(representation)
    if representation == "raw":
        return windows
    latest = windows[torch.arange(len(windows)), lengths - 1][:, None]
    spread = latest.std(-1, keepdim=True).clamp_min(1e-12)
    sample_size = windows.shape[-1]
    first_half = sample_size - sample_size // 2
    parts = [
        _log_quantiles((windows - windows[:, :1]) / spread, first_half),
        _log_quantiles((windows - latest) / spread, sample_size // 2),
    ]
    return torch.cat(parts, -1)


def check_representation(representation: str) -> None:
    """Raise ``ValueError`` for an unknown representation."""
    if representation not in get_args(Representation):
        raise ValueError(f"representation={representation!r}: must be one of {get_args(Representation)}")


def _log_quantiles(values: Tensor, count: int) -> Tensor:
    """Evenly spaced quantiles of absolute values, as logarithms brought to about unit scale."""
    ordered = values.abs().sort(-1).values
    positions = torch.linspace(0, values.shape[-1] - 1, count, dtype=torch.float, device=values.device).round().long()
    return (ordered[..., positions] + _FLOOR).log10() / 2 + 1


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    sizes = [(inputs, hidden), (hidden, hidden), (hidden, outputs)]
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.Linear(*size), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class AttentionPredictor(SavedPredictor):
    """Tell from a layer's weight history whether it is ready to be frozen (Eq. 1 to 4).

    Three 3-layer MLPs make a query of the latest snapshot and a key and a value of every snapshot; one-to-all attention
    sums the values up; a fourth MLP gives the scores of training on and of freezing.
    """

    kind = "smartfrz-predictor"
    shipped = SHIPPED / "displacement.safetensors"

    def __init__(
        self,
        sample_size: int = 1024,
        hidden: int = 256,
        features: int = 64,
        decision_hidden: int = 32,
        representation: Representation = "displacement",
    ) -> None:
        sizes = {"sample_size": sample_size, "hidden": hidden, "features": features}
        sizes |= {"decision_hidden": decision_hidden, "representation": representation}
        super().__init__(arguments=sizes)
        check_representation(representation)
        if sample_size < 1:
            raise ValueError(f"sample_size={sample_size}: must be at least 1; the paper takes 1024")
        self.sample_size = sample_size
        self.representation: Representation = representation
        self.key = _mlp(sample_size, hidden, features)
        self.query = _mlp(sample_size, hidden, features)
        self.value = _mlp(sample_size, hidden, features)
        self.decision = _mlp(features, decision_hidden, 2)

    @property
    def window(self) -> int:
        """Snapshots in the windows that it was trained on; the paper's by default."""
        return int(self.about.get("window", 30))

    @torch.no_grad()
    def confidence(self, windows: Tensor) -> Tensor:
        """How sure it is that layers are ready to be frozen, ``[layers]`` from 0 to 1, in full precision."""
        with torch.autocast(windows.device.type, enabled=False):
            return self(windows.float()).softmax(-1)[:, 1]

    def forward(self, windows: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scores of training on and of freezing, before the softmax, ``[layers, 2]``.

        Windows are ``[layers, snapshots, sample_size]``, oldest first; ``lengths`` says how many snapshots each one has
        where some are padded at the end.
        """
        if windows.ndim != 3 or windows.shape[-1] != self.sample_size or not windows.shape[1]:
            raise ValueError(
                f"windows of shape {tuple(windows.shape)}: must be [layers, snapshots, {self.sample_size}]"
            )
        if lengths is None:
            lengths = torch.full((len(windows),), windows.shape[1], device=windows.device)
        seen = represent(windows, lengths, self.representation)
        latest = seen[torch.arange(len(seen)), lengths - 1]
        keys, values = self.key(seen), self.value(seen)  # Eq. 1
        scores = (keys @ self.query(latest)[:, :, None])[..., 0]
        padding = torch.arange(keys.shape[1], device=keys.device) >= lengths[:, None]
        attention = scores.masked_fill(padding, float("-inf")).softmax(1)  # Eq. 2
        return self.decision((attention[:, None] @ values)[:, 0])  # Eq. 3 and 4
