"""The freezing timeline of a run: what froze when, and what it saved."""

import contextlib
import csv
import io
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from smartfrz_lightning.cost.step_cost import StepCost, StepFlops
from smartfrz_lightning.layers.layer import Layer


@dataclass
class FreezeEvent:
    """A layer froze, or trains again.

    Attributes:
        layer: Its name.
        step: Optimizer steps done before.
        epoch: Epochs done before, with fraction where the epoch's length is known.
        confidence: How sure the method was, 0 to 1; ``None`` if it has no such number.
        kind: ``"freeze"`` or ``"thaw"``.
    """

    layer: str
    step: int
    epoch: float
    confidence: float | None
    kind: Literal["freeze", "thaw"] = "freeze"


@dataclass
class Timeline:
    """All that is reported of a run.

    Attributes:
        layers: The layers in forward order.
        events: What froze, in order of time.
        cost: What a step costs.
        spent: FLOPs that were done; a batch counts as the measured one, by its size.
        full: FLOPs that training everything would have taken.
        steps: Optimizer steps done.
        notes: What the method said of its decisions, in order of time.
        callback_seconds: Time spent in the callback's hooks; without the report.
        fit_seconds: Time spent in ``fit``.
        repeated: Batches that were repeated with everything training, in units of the first that was measured.
    """

    layers: list[Layer] = field(default_factory=list)
    events: list[FreezeEvent] = field(default_factory=list)
    cost: StepCost | None = None
    spent: StepFlops = field(default_factory=StepFlops)
    full: StepFlops = field(default_factory=StepFlops)
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    callback_seconds: float = 0
    fit_seconds: float = 0
    repeated: float = 0

    def __post_init__(self) -> None:
        self._unmeasured = 0.0  # batches before the first that could be measured
        self._step, self._booked = StepFlops(), -1  # what a batch costs, after so many events
        self._began = time.perf_counter()

    # --- what is booked

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Time spent inside is time of the callback."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.callback_seconds += time.perf_counter() - began

    def seconds(self) -> float:
        """``fit_seconds`` and those since this was made or taken up."""
        return self.fit_seconds + time.perf_counter() - self._began

    def batch_done(self, work: float, frozen: Collection[str]) -> None:
        """Book a batch with these layers frozen, whose forward FLOPs are ``work`` times the first measured one's."""
        if self.cost is None:
            self._unmeasured += work
            return
        if self._booked != len(self.events):
            self._step, self._booked = self.cost.when_frozen(frozen), len(self.events)
        work, self._unmeasured = work + self._unmeasured, 0.0
        self.spent += self._step.times(work)
        self.full += self.cost.full.times(work)

    def batch_repeated(self, work: float) -> None:
        """Book a batch that was repeated with everything training."""
        self.repeated += work
        self.spent += self.cost.full.times(work) if self.cost is not None else StepFlops()

    def change(self, frozen: Mapping[str, float | None], thawed: Collection[str], epoch: float, step: int) -> None:
        """Book layers that freeze and layers that train again."""
        self.events += [FreezeEvent(name, step, epoch, None, "thaw") for name in thawed]
        self.events += [FreezeEvent(name, step, epoch, confidence) for name, confidence in frozen.items()]

    # --- what follows from it

    @property
    def patterns(self) -> int:
        """At most so many patterns of what trains has freezing brought to a function that blocks share.

        A frozen layer changes the pattern of its block, and the block behind the last one gets an input without
        gradient; BatchNorms go to eval mode a little later.
        """
        return len(self.events) + 2 * len({event.step for event in self.events})

    @property
    def saved(self) -> float:
        """Share of all training FLOPs that was saved, 0 to 1."""
        full = self.full.total
        return 1 - self.spent.total / full if full else 0.0

    @property
    def frozen(self) -> list[str]:
        """Names of the layers that are frozen now, in the order in which they froze."""
        frozen: dict[str, None] = {}
        for event in self.events:
            frozen.pop(event.layer, None)
            if event.kind == "freeze":
                frozen[event.layer] = None
        return list(frozen)

    def periods(self, layer: str) -> list[tuple[int, int | None]]:
        """Between which steps a layer was frozen; the last one ends with ``None`` if it still is."""
        periods: list[tuple[int, int | None]] = []
        for event in self.events:
            if event.layer == layer and event.kind == "freeze":
                periods.append((event.step, None))
            elif event.layer == layer and periods:
                periods[-1] = (periods[-1][0], event.step)
        return periods

    def event_of(self, layer: str) -> FreezeEvent | None:
        """The freeze that holds now; ``None`` for a layer that trains."""
        last = next((event for event in reversed(self.events) if event.layer == layer), None)
        return last if last is not None and last.kind == "freeze" else None

    def to_csv(self) -> str:
        """One row a layer, in forward order, with when it froze, how sure the method was, and why it always trains.

        Step, epoch and confidence are those of the freeze that holds at the end; ``frozen_steps`` has all the periods
        in which the layer was frozen, such as ``120-150 200-``.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            ["index", "layer", "parameters", "step", "epoch", "confidence", "always_trains", "frozen_steps"]
        )
        for index, layer in enumerate(self.layers):
            event = self.event_of(layer.name)
            confidence = "" if event is None or event.confidence is None else f"{event.confidence:.4g}"
            when = [event.step, f"{event.epoch:.4g}", confidence] if event else ["", "", ""]
            periods = " ".join(f"{a}-{'' if b is None else b}" for a, b in self.periods(layer.name))
            writer.writerow([index, layer.name, layer.size, *when, layer.always_trains, periods])
        return out.getvalue()

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers, strings, lists and dicts."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Timeline":
        """The timeline that was saved."""
        lists = ("parameters", "weights", "stateful")  # JSON knows no tuples
        layers = [Layer(**{**layer, **{key: tuple(layer[key]) for key in lists}}) for layer in state["layers"]]
        events = [FreezeEvent(**event) for event in state["events"]]
        cost = StepCost.from_state_dict(state["cost"]) if state["cost"] else None
        flops = {name: StepFlops(**state[name]) for name in ("spent", "full")}
        return cls(**{**state, "layers": layers, "events": events, "cost": cost, **flops})


def read_freeze_steps(path: str | Path) -> dict[str, int | None]:
    """Read a CSV that ``Timeline.to_csv`` wrote: after how many steps each layer froze, ``None`` if it never did."""
    rows = list(csv.DictReader(io.StringIO(Path(path).read_text())))
    try:
        return {row["layer"]: int(row["step"]) if row["step"] else None for row in rows}
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is no freezing timeline: it needs the columns layer and step. Give the freeze_timeline.csv "
            "of a run"
        ) from error
