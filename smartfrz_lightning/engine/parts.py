"""Parts: what belongs to one training of a model, and goes into its checkpoint."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from smartfrz_lightning.engine.decider import Decider
from smartfrz_lightning.engine.frozen import FrozenLayers
from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.observer import Observer
from smartfrz_lightning.engine.processes import Processes
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.engine.state import VERSION
from smartfrz_lightning.layers.excluding import pin
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.private.pytorch import tree_map_only
from smartfrz_lightning.report.ledger import Ledger
from smartfrz_lightning.report.timeline import Timeline

_OF_THE_LOOP = ("schedulers", "batches_per_epoch", "total_batches", "shadow_step", "cannot_verify")
_COUNTED = ("steps", "global_steps", "batches", "batches_before", "epoch", "progress", "latest_rates")


class Parts:
    """The run, its books, and what observes, decides and freezes.

    Attributes:
        run: What the method knows of the training.
        ledger: Books what froze and what it saved.
        observer: Finds the layers, and watches batches.
        frozen: Keeps what is frozen as it is.
        decider: Asks the method.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        method: FreezingMethod,
        processes: Processes,
        say: Callable[[str], None],
        timeline: Timeline,
        before: TrainingRun | None = None,
    ) -> None:
        self._method, self._say = method, say
        self.ledger = Ledger(timeline)
        self.run = TrainingRun(
            model=model,
            optimizers=list(optimizers),
            layers=timeline.layers,
            is_first_process=processes.is_first,
            agree=processes.agree,
            say=self._tell,
            **{name: getattr(before, name) for name in _OF_THE_LOOP if before is not None},
        )
        self.observer = Observer(model)
        self.frozen = FrozenLayers(model, processes, self.run)
        self.decider = Decider(method, self.run, self.frozen, self.ledger, processes)

    def _tell(self, text: str) -> None:
        self.ledger.timeline.notes.append(text)
        if self.run.is_first_process:
            self._say(text)

    def state_dict(self, counted: dict[str, int]) -> dict[str, Any]:
        """Everything that a training needs to go on: plain values and tensors, which later steps do not move."""
        own = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), self._method.method_state())
        run = self.run
        return {
            "version": VERSION,
            "timeline": self.ledger.state_dict(),
            "counters": {**counted, **{name: getattr(run, name) for name in _COUNTED}},
            "frozen": list(run.frozen),
            "untrained": sorted(run.untrained),
            "confidence": dict(run.confidence),
            "method": own,
            "recalibrating": self.frozen.norms.state_dict(),
            "meter": self.observer.meter.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], later: Collection[Layer]) -> None:
        """Take up a saved state.

        Args:
            state: Of ``state_dict``.
            later: Layers that have frozen since in this very model.

        Raises:
            ValueError: It is of another window or sample size.
        """
        run = self.run
        for name in _COUNTED:
            setattr(run, name, state["counters"][name])
        run.frozen, run.untrained = list(state["frozen"]), set(state["untrained"])
        run.confidence, run.cost = dict(state["confidence"]), self.ledger.timeline.cost
        self.observer.meter.load_state_dict(state["meter"])
        self.decider.pin(pin(run.layers, self._method.exclude))
        self._method.prepare(run)
        self.frozen.restore(later)
        self.frozen.norms.load_state_dict(state["recalibrating"], run.frozen_layers)
        if run.layers:
            self._method.load_method_state(state["method"], run)
