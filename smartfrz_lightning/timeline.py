"""The freezing timeline of a run: what froze when, and what it saved."""

import csv
import io
from dataclasses import asdict, dataclass, field
from typing import Any

from smartfrz_lightning.cost import StepFlops
from smartfrz_lightning.layers import Layer


@dataclass
class FreezeEvent:
    """A layer froze.

    Attributes:
        layer: Its name.
        step: Optimizer steps done before.
        epoch: Epochs done before, with fraction where the epoch's length is known.
        confidence: How sure the method was, 0 to 1.
    """

    layer: str
    step: int
    epoch: float
    confidence: float


@dataclass
class Timeline:
    """All that is reported of a run.

    Attributes:
        layers: The layers in forward order.
        events: What froze, in order of time.
        steps: Optimizer steps done.
        spent: FLOPs that were done. Every batch counts as the one that was measured in its state of freezing.
        full: FLOPs that training everything would have taken.
        callback_seconds: Time spent in the callback.
        fit_seconds: Time spent in ``fit``.
    """

    layers: list[Layer] = field(default_factory=list)
    events: list[FreezeEvent] = field(default_factory=list)
    steps: int = 0
    spent: StepFlops = field(default_factory=StepFlops)
    full: StepFlops = field(default_factory=StepFlops)
    callback_seconds: float = 0
    fit_seconds: float = 0

    @property
    def saved(self) -> float:
        """Share of all training FLOPs that was saved, 0 to 1."""
        return 1 - self.spent.total / self.full.total if self.full.total else 0.0

    @property
    def overhead(self) -> float:
        """Share of the seconds of ``fit`` that the callback took."""
        return self.callback_seconds / self.fit_seconds if self.fit_seconds else 0.0

    def event_of(self, layer: str) -> FreezeEvent | None:
        """When a layer froze."""
        return next((event for event in self.events if event.layer == layer), None)

    def to_csv(self) -> str:
        """One row a layer, in forward order: index, layer, parameters, step, epoch, confidence, pinned."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["index", "layer", "parameters", "step", "epoch", "confidence", "pinned"])
        for index, layer in enumerate(self.layers):
            event = self.event_of(layer.name)
            when = [event.step, f"{event.epoch:.4g}", f"{event.confidence:.4g}"] if event else ["", "", ""]
            writer.writerow([index, layer.name, layer.size, *when, layer.pinned])
        return out.getvalue()

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers, strings, lists and dicts."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Timeline":
        """The timeline that was saved."""
        layers = [
            Layer(**{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in layer.items()})
            for layer in state["layers"]
        ]
        flops = {name: StepFlops(**state[name]) for name in ("spent", "full")}
        return cls(**{**state, **flops, "layers": layers, "events": [FreezeEvent(**e) for e in state["events"]]})
