"""Confidence that layers are ready to be frozen, without encoding a snapshot twice where that is possible."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smartfrz_lightning.predictor.network import AttentionPredictor


class FreezeConfidence:
    """Run a predictor over the windows of all active layers in one batch.

    Where a snapshot's representation does not depend on its window (``raw``), keys and values are kept from one check
    to the next and only new snapshots are encoded.

    Args:
        predictor: The predictor.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.predictor.inference import FreezeConfidence
        >>> from smartfrz_lightning.predictor.weights import load_predictor
        >>> confidence = FreezeConfidence(load_predictor())
        >>> start, way = torch.randn(1, 1024), torch.linspace(0, 1, 30)[:, None]
        >>> windows = torch.stack([start + 1e-4 * way, start + way * torch.randn(1, 1024)])
        >>> (confidence(windows, ["still", "moving"], range(30)) > 0.5).tolist()
        [True, False]
    """

    def __init__(self, predictor: AttentionPredictor) -> None:
        self.predictor = predictor
        self._names: list[str] = []
        self._steps: list[int] = []
        self._kept: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, windows: Tensor, names: Sequence[str], steps: Sequence[int]) -> Tensor:
        """Confidence between 0 and 1 a layer.

        Args:
            windows: ``[layers, snapshots, sample_size]``, oldest first.
            names: Name of each layer.
            steps: When each snapshot was taken.

        Returns:
            ``[layers]``.
        """
        with torch.autocast(windows.device.type, enabled=False):
            if not self.predictor.snapshots_stand_alone:
                return self.predictor(windows).softmax(-1)[:, 1]
            keys, values = self._encode(windows, list(names), list(steps))
            lengths = torch.full((len(windows),), windows.shape[1], device=windows.device)
            return self.predictor.decide(windows[:, -1], keys, values, lengths).softmax(-1)[:, 1]

    def _encode(self, windows: Tensor, names: list[str], steps: list[int]) -> tuple[Tensor, Tensor]:
        known = [step for step in steps if step in self._steps] if set(names) <= set(self._names) else []
        fresh = self.predictor.encode(windows[:, len(known) :])
        if known and self._kept is not None:
            rows = torch.tensor([self._names.index(name) for name in names], device=windows.device)
            columns = torch.tensor([self._steps.index(step) for step in known], device=windows.device)
            old = [kept[rows][:, columns] for kept in self._kept]
            fresh = torch.cat([old[0], fresh[0]], 1), torch.cat([old[1], fresh[1]], 1)
        self._names, self._steps, self._kept = names, steps, fresh
        return fresh
