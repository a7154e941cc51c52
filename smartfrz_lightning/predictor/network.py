"""The attention predictor (paper, section 3.3 and appendix C)."""

import torch
from torch import Tensor, nn

from smartfrz_lightning.predictor.representation import Representation, check_representation, represent


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    sizes = [(inputs, hidden), (hidden, hidden), (hidden, outputs)]
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.Linear(*size), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class AttentionPredictor(nn.Module):
    """Tell from a layer's weight history whether it is ready to be frozen (Eq. 1 to 4).

    Three 3-layer MLPs make a query of the latest snapshot and a key and a value of every snapshot; one-to-all attention
    sums the values up; a fourth MLP gives the scores of training on and of freezing.

    Args:
        sample_size: Sampled weights a snapshot.
        hidden: Hidden size of the encoders.
        features: Size of keys, queries and values.
        decision_hidden: Hidden size of the last MLP.
        representation: What the encoders see, see ``represent``.

    Examples:
        >>> import torch
        >>> from smartfrz_lightning.predictor.network import AttentionPredictor
        >>> predictor = AttentionPredictor(sample_size=64)
        >>> predictor(torch.randn(5, 30, 64)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        sample_size: int = 1024,
        hidden: int = 256,
        features: int = 64,
        decision_hidden: int = 32,
        representation: Representation = "displacement",
    ) -> None:
        super().__init__()
        check_representation(representation)
        if sample_size < 1:
            raise ValueError(f"sample_size={sample_size}: must be at least 1; the paper takes 1024")
        self.sample_size = sample_size
        self.window = 30
        """Snapshots in the windows that it was trained on; the paper's by default."""
        self.representation: Representation = representation
        self.key = _mlp(sample_size, hidden, features)
        self.query = _mlp(sample_size, hidden, features)
        self.value = _mlp(sample_size, hidden, features)
        self.decision = _mlp(features, decision_hidden, 2)

    def forward(self, windows: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scores of training on and of freezing, before the softmax.

        Args:
            windows: ``[layers, snapshots, sample_size]`` sampled weights, oldest first.
            lengths: ``[layers]`` snapshots in each window where some are shorter and padded at the end; all by default.

        Returns:
            ``[layers, 2]``.
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
