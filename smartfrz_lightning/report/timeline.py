"""The freezing timeline of a run: what froze when, and what it saved."""

import csv
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from smartfrz_lightning.cost.flops import StepFlops
from smartfrz_lightning.cost.layer_flops import LayerFlops
from smartfrz_lightning.freezing.cache_use import CacheUse
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

    Example:
        >>> from smartfrz_lightning.report.timeline import FreezeEvent, Timeline
        >>> timeline = Timeline(events=[FreezeEvent("stem", step=120, epoch=1.5, confidence=0.9)])
        >>> timeline.event_of("stem").step, timeline.event_of("head")
        (120, None)
        >>> timeline.events.append(FreezeEvent("stem", step=150, epoch=2.0, confidence=None, kind="thaw"))
        >>> timeline.frozen, timeline.periods("stem")
        ([], [(120, 150)])
    """

    layer: str
    step: int
    epoch: float
    confidence: float | None
    kind: Literal["freeze", "thaw"] = "freeze"


@dataclass
class TrainingState:
    """What training costs between two changes of what is frozen, as measured on the first batch of that time.

    Attributes:
        step: Optimizer steps done before.
        flops: FLOPs of the measured batch.
        saved_bytes: The most that autograd keeps at once for the backward pass of that batch.
        device_bytes: Memory that was allocated on the accelerator when that batch's backward pass began, which is about
            the peak of a step; 0 on the CPU.
        size: Size of the measured batch: values in its largest tensor.
        seen: Sizes of all batches in this state, added up.
        events: Events before this state.
        skipped: Forward FLOPs of a cached front that were not done.

    Example:
        >>> from smartfrz_lightning.cost.flops import StepFlops
        >>> from smartfrz_lightning.report.timeline import TrainingState
        >>> start = TrainingState(step=0, flops=StepFlops(60, 60, 50), saved_bytes=480, size=32, seen=3200)
        >>> start.spent.total  # a hundred such batches
        17000.0
    """

    step: int
    flops: StepFlops
    saved_bytes: int
    device_bytes: int = 0
    size: float = 1
    seen: float = 0
    events: int = 0
    skipped: float = 0

    @property
    def spent(self) -> StepFlops:
        """FLOPs of all batches in this state: each counts by its size."""
        done = self.flops.times(self.seen / self.size)
        done.forward -= self.skipped
        return done


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
class Start:
    """What a probe at the start of a training saw, and what was decided.

    Attributes:
        steps: Steps of the probe.
        profile: How much each layer wants to move: the norm of its gradients relative to its weights, by name, in
            forward order.
        sure: How likely it does no harm to hold everything up to this layer, 0 to 1, by name.
        held: The layers that are held from the start.
        untrained: The last ones before the head, if they still have the weights that they were made with.

    Example:
        >>> from smartfrz_lightning.report.timeline import Start
        >>> Start(4, {"stem": 0.01, "block": 0.02}, {"stem": 0.95, "block": 0.7}, ["stem"]).held
        ['stem']
    """

    steps: int
    profile: dict[str, float]
    sure: dict[str, float]
    held: list[str]
    untrained: list[str] = field(default_factory=list)


@dataclass
class Look:
    """What a second look at a held front saw: a copy of the model, of which everything trained, beside it.

    Attributes:
        step: Optimizer steps done before.
        steps: Steps that it took.
        gain: How much lower the loss of the copy was, on average over the second half of these steps.
        error: The standard error of that, at least a hundredth of the loss.
        stays: How many layers of the front stayed held; if none did, the model went on as the copy.
        released: How many train again.

    Example:
        >>> from smartfrz_lightning.report.timeline import Look
        >>> Look(step=50, steps=25, gain=-0.02, error=0.01, stays=12, released=0).stays
        12
    """

    step: int
    steps: int
    gain: float
    error: float
    stays: int
    released: int


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
        callback_seconds: Time spent in the callback's hooks; without the slower first step, in which layers are found
            and FLOPs counted, and without the report.
        fit_seconds: Time spent in ``fit``.
        start: What a probe at the start saw, if there was one.
        cache: What the cache of the frozen front did, if there was one.
        look: What a second look at the front that is held saw, if there was one.
        beside: Sizes of all batches in which a copy trained everything beside the model, added up.

    Example:
        >>> from smartfrz_lightning.cost.flops import StepFlops
        >>> from smartfrz_lightning.layers.layer import Layer
        >>> from smartfrz_lightning.report.timeline import FreezeEvent, Timeline, TrainingState
        >>> layers, events = [Layer("0", (), (), (), 66), Layer("1", (), (), (), 8)], [FreezeEvent("0", 4, 1.0, 0.9)]
        >>> states = [TrainingState(0, StepFlops(6, 6, 4), 80, seen=4), TrainingState(4, StepFlops(6, 2), 40, seen=4)]
        >>> timeline = Timeline(layers, events, states, steps=8)
        >>> timeline.saved  # four steps of 16 and four of 8, in the place of eight of 16
        0.25
        >>> print(timeline.to_csv())
        index,layer,parameters,step,epoch,confidence,pinned,frozen_steps
        0,0,66,4,1,0.9,,4-
        1,1,8,,,,,
        <BLANKLINE>
    """

    layers: list[Layer] = field(default_factory=list)
    events: list[FreezeEvent] = field(default_factory=list)
    states: list[TrainingState] = field(default_factory=list)
    costs: list[LayerFlops] = field(default_factory=list)
    compilations: list[Compilation] = field(default_factory=list)
    steps: int = 0
    callback_seconds: float = 0
    fit_seconds: float = 0
    start: Start | None = None
    cache: CacheUse | None = None
    look: Look | None = None
    beside: float = 0

    @property
    def spent(self) -> StepFlops:
        """FLOPs that were done; every batch counts as the one measured in its state of freezing, by its size."""
        total = StepFlops()
        for state in self.states:
            total.add(state.spent)
        if self.beside:
            total.add(self.states[0].flops.times(self.beside / self.states[0].size))
        return total

    @property
    def full(self) -> StepFlops:
        """FLOPs that training everything would have taken."""
        if not self.states:
            return StepFlops()
        first = self.states[0]
        return first.flops.times(sum(state.seen for state in self.states) / first.size)

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

    @property
    def overhead(self) -> float:
        """Share of the seconds of ``fit`` that the callback's hooks took."""
        return self.callback_seconds / self.fit_seconds if self.fit_seconds else 0.0

    def event_of(self, layer: str) -> FreezeEvent | None:
        """The freeze that holds now; ``None`` for a layer that trains."""
        last = next((event for event in reversed(self.events) if event.layer == layer), None)
        return last if last is not None and last.kind == "freeze" else None

    def to_csv(self) -> str:
        """One row a layer, in forward order: index, layer, parameters, step, epoch, confidence, pinned, frozen_steps.

        Step, epoch and confidence are those of the freeze that holds at the end; ``frozen_steps`` has all the periods
        in which the layer was frozen, such as ``120-150 200-``.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["index", "layer", "parameters", "step", "epoch", "confidence", "pinned", "frozen_steps"])
        for index, layer in enumerate(self.layers):
            event = self.event_of(layer.name)
            sure = "" if event is None or event.confidence is None else f"{event.confidence:.4g}"
            when = [event.step, f"{event.epoch:.4g}", sure] if event else ["", "", ""]
            periods = " ".join(f"{a}-{'' if b is None else b}" for a, b in self.periods(layer.name))
            writer.writerow([index, layer.name, layer.size, *when, layer.pinned, periods])
        return out.getvalue()

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers, strings, lists and dicts, with what is computed from them."""
        return {**asdict(self), "spent": asdict(self.spent), "full": asdict(self.full)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Timeline":
        """The timeline that was saved."""
        lists = ("parameters", "weights", "stateful")  # JSON knows no tuples
        layers = [Layer(**{**layer, **{key: tuple(layer[key]) for key in lists}}) for layer in state["layers"]]
        rest = {name: value for name, value in state.items() if name not in ("spent", "full")}
        states = [TrainingState(**{**entry, "flops": StepFlops(**entry["flops"])}) for entry in state["states"]]
        events = [FreezeEvent(**event) for event in state["events"]]
        costs = [LayerFlops(**cost) for cost in state["costs"]]
        compilations = [Compilation(**entry) for entry in state.get("compilations", [])]
        parts = {"layers": layers, "events": events, "states": states, "costs": costs, "compilations": compilations}
        start = Start(**state["start"]) if state.get("start") else None
        cache = CacheUse(**state["cache"]) if state.get("cache") else None
        look = Look(**state["look"]) if state.get("look") else None
        return cls(**{**rest, **parts, "start": start, "cache": cache, "look": look})


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
