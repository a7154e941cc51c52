"""The freezing timeline of a run: what froze when, and what it saved."""

import csv
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smartfrz_lightning.cost.flops import StepFlops
from smartfrz_lightning.cost.layer_flops import LayerFlops
from smartfrz_lightning.layers.layer import Layer


@dataclass
class FreezeEvent:
    """A layer froze.

    Attributes:
        layer: Its name.
        step: Optimizer steps done before.
        epoch: Epochs done before, with fraction where the epoch's length is known.
        confidence: How sure the method was, 0 to 1; ``None`` if it has no such number.

    Example:
        >>> from smartfrz_lightning.report.timeline import FreezeEvent, Timeline
        >>> timeline = Timeline(events=[FreezeEvent("stem", step=120, epoch=1.5, confidence=0.9)])
        >>> timeline.event_of("stem").step, timeline.event_of("head")
        (120, None)
    """

    layer: str
    step: int
    epoch: float
    confidence: float | None


@dataclass
class TrainingState:
    """What one training batch costs between two freezing events, as measured on the first batch of that time.

    Attributes:
        step: Optimizer steps done before.
        flops: FLOPs of one batch.
        saved_bytes: The most that autograd keeps at once for the backward pass of one batch.
        device_bytes: Most memory that was allocated on the accelerator in this state; 0 on the CPU.

    Example:
        >>> from smartfrz_lightning.cost.flops import StepFlops
        >>> from smartfrz_lightning.report.timeline import TrainingState
        >>> start = TrainingState(step=0, flops=StepFlops(60, 60, 50), saved_bytes=480)
        >>> later = TrainingState(step=120, flops=StepFlops(60, 30, 20), saved_bytes=160)
        >>> later.flops.total - start.flops.total, later.saved_bytes - start.saved_bytes
        (-60, -320)
    """

    step: int
    flops: StepFlops
    saved_bytes: int
    device_bytes: int = 0


@dataclass
class Compilation:
    """What ``torch.compile`` compiled between two freezing events.

    Attributes:
        frozen: Number of layers that were frozen.
        count: Compilations, of validation too.
        seconds: Time they took.

    Example:
        >>> from smartfrz_lightning.report.timeline import Compilation, Timeline
        >>> timeline = Timeline(compilations=[Compilation(frozen=0, count=2, seconds=8.0), Compilation(3, 2, 4.5)])
        >>> sum(entry.seconds for entry in timeline.compilations if entry.frozen)  # what freezing made compile anew
        4.5
    """

    frozen: int
    count: int = 0
    seconds: float = 0


@dataclass
class Timeline:
    """All that is reported of a run.

    Attributes:
        layers: The layers in forward order.
        events: What froze, in order of time.
        states: What a batch cost, one entry for the start and one after each freezing event.
        costs: FLOPs of each layer in one batch.
        compilations: What was compiled when; empty without ``torch.compile``.
        steps: Optimizer steps done.
        spent: FLOPs that were done. Every batch counts as the one that was measured in its state of freezing.
        full: FLOPs that training everything would have taken.
        callback_seconds: Time spent in the callback.
        fit_seconds: Time spent in ``fit``.

    Example:
        >>> from smartfrz_lightning.cost.flops import StepFlops
        >>> from smartfrz_lightning.layers.layer import Layer
        >>> from smartfrz_lightning.report.timeline import FreezeEvent, Timeline
        >>> layers, events = [Layer("0", (), (), (), 66), Layer("1", (), (), (), 8)], [FreezeEvent("0", 4, 1.0, 0.9)]
        >>> timeline = Timeline(layers, events, steps=10, spent=StepFlops(60, 40, 20), full=StepFlops(60, 60, 40))
        >>> timeline.saved
        0.25
        >>> print(timeline.to_csv())
        index,layer,parameters,step,epoch,confidence,pinned
        0,0,66,4,1,0.9,
        1,1,8,,,,
        <BLANKLINE>
    """

    layers: list[Layer] = field(default_factory=list)
    events: list[FreezeEvent] = field(default_factory=list)
    states: list[TrainingState] = field(default_factory=list)
    costs: list[LayerFlops] = field(default_factory=list)
    compilations: list[Compilation] = field(default_factory=list)
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
            sure = "" if event is None or event.confidence is None else f"{event.confidence:.4g}"
            when = [event.step, f"{event.epoch:.4g}", sure] if event else ["", "", ""]
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
        states = [TrainingState(**{**entry, "flops": StepFlops(**entry["flops"])}) for entry in state["states"]]
        events = [FreezeEvent(**event) for event in state["events"]]
        costs = [LayerFlops(**cost) for cost in state["costs"]]
        compilations = [Compilation(**entry) for entry in state.get("compilations", [])]
        parts = {"layers": layers, "events": events, "states": states, "costs": costs, "compilations": compilations}
        return cls(**{**state, **flops, **parts})


def read_freeze_steps(path: str | Path) -> dict[str, int | None]:
    """Read a CSV that :meth:`Timeline.to_csv` wrote: after how many steps each layer froze, ``None`` if it never did.

    Raises:
        ValueError: It is no such CSV.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from smartfrz_lightning.layers.layer import Layer
        >>> from smartfrz_lightning.report.timeline import FreezeEvent, Timeline, read_freeze_steps
        >>> layers = [Layer("0", (), (), (), 66), Layer("1", (), (), (), 8)]
        >>> timeline = Timeline(layers, [FreezeEvent("0", step=4, epoch=1.0, confidence=0.9)])
        >>> with TemporaryDirectory() as folder:
        ...     size = Path(folder, "timeline.csv").write_text(timeline.to_csv())
        ...     read_freeze_steps(f"{folder}/timeline.csv")
        {'0': 4, '1': None}
    """
    rows = list(csv.DictReader(io.StringIO(Path(path).read_text())))
    try:
        return {row["layer"]: int(row["step"]) if row["step"] else None for row in rows}
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is no freezing timeline: it needs the columns layer and step. Give the freeze_timeline.csv "
            "of a run"
        ) from error
