"""How far the layers of a model moved between snapshots, and at which rate and loss."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.layers.layer import Layer


@dataclass
class Movement:
    """What ``T`` snapshots of ``L`` layers show.

    Attributes:
        moved: ``[T, L]``: distance of the sampled weights to those of the snapshot before, relative to their norm.
        rates: ``[T]``: mean learning rate of the steps since then.
        losses: ``[T]``: mean training loss since then, relative to that of the first batch.
        progress: ``[T]``: share of the run that was done.
    """

    moved: Tensor
    rates: Tensor
    losses: Tensor
    progress: Tensor


@dataclass
class MovementHistory:
    """Compare every layer's tailored snapshot (paper, section 3.2) with the one before, as training goes on.

    Only one snapshot is kept, and a number a layer and snapshot.

    Args:
        model: The model that trains.
        layers: The layers to watch.
        sample_size: Sampled weights a layer (1,024 in the paper).
        seed: Fixes which.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.history.movement import MovementHistory
        >>> from smartfrz_lightning.layers.finder import find_layers
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> history = MovementHistory(net, find_layers(net, torch.rand(1, 8)), sample_size=16)
        >>> history.record(rate=0.1, loss=0.9, progress=0.05)
        >>> history.movement().moved.tolist()
        [[0.0, 0.0]]
    """

    model: nn.Module
    layers: Sequence[Layer]
    sample_size: int = 1024
    seed: int = 0
    _rows: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._sampler = WeightSampler(self.model, self.layers, self.sample_size, self.seed)
        self._latest = self._sample()

    def _sample(self) -> Tensor:
        device = next(self.model.parameters()).device
        return self._sampler(torch.empty(len(self.layers), self.sample_size, device=device))

    def record(self, rate: float, loss: float, progress: float) -> None:
        """Take a snapshot.

        Args:
            rate: Mean learning rate of the steps since the last one.
            loss: Mean training loss since then, relative to that of the first batch.
            progress: Share of the run that is done.
        """
        before, self._latest = self._latest, self._sample()
        moved = (self._latest - before).norm(dim=1) / self._latest.norm(dim=1).clamp(min=1e-12)
        self._rows.append({"moved": moved.cpu(), "rates": rate, "losses": loss, "progress": progress})

    @property
    def rates_rise(self) -> bool:
        """Whether the mean learning rate was higher before the latest snapshot than before the one before it."""
        before, latest = [0.0, 0.0, *(row["rates"] for row in self._rows)][-2:]
        return latest > before * (1 + 1e-6)

    def movement(self) -> Movement:
        """What the snapshots show."""
        columns = {name: [row[name] for row in self._rows] for name in ("rates", "losses", "progress")}
        moved = torch.stack([row["moved"] for row in self._rows])
        return Movement(moved, **{name: torch.tensor(column) for name, column in columns.items()})

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after a resume."""
        return {"rows": [dict(row) for row in self._rows], "latest": self._latest.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved history.

        Raises:
            ValueError: It is of other layers, or of another sample size.
        """
        if state["latest"].shape != self._latest.shape:
            raise ValueError(
                f"the saved history is of {tuple(state['latest'].shape)} layers and sampled weights, this run's of "
                f"{tuple(self._latest.shape)}: resume with the model and sample_size of the run that was saved"
            )
        self._rows = [dict(row) for row in state["rows"]]
        self._latest = state["latest"].to(self._latest.device)
