"""TrainingRun: what a freezing method may know of the training, by name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from smartfrz_lightning.cost.step_cost import StepCost
from smartfrz_lightning.layers.layer import Layer

if TYPE_CHECKING:
    from smartfrz_lightning.engine.shadow import ShadowStep


@dataclass
class TrainingRun:
    """A model in training, as a freezing method sees it. The engine keeps it up to date; methods only read.

    A *step* is a training batch after which an optimizer moved weights. The length of a run is known in batches, as
    only the training loop decides how many of them make a step; what depends on it goes by ``progress``.

    Attributes:
        model: The model.
        optimizers: Its optimizers.
        schedulers: The learning-rate schedulers, as far as the training loop says.
        layers: All layers in forward order; empty until the first training batch was watched.
        frozen: Names of the layers that are frozen, in the order in which they froze.
        confidence: How sure the method was of each frozen layer, 0 to 1, where it has such a number.
        untrained: Frozen layers whose weights are those that they had before the run.
        cost: FLOPs of a step; ``None`` until one was measured.
        steps: Steps of this run that are done.
        global_steps: Steps that are done, with those of earlier fits of the same model.
        batches: Batches of this run that were done after the latest step.
        epoch: Epochs that were done after the latest step, with fraction where the epoch's length is known.
        progress: Share of the run that was done after the latest step, 0 to 1; ``None`` where its length is not known.
        batches_per_epoch: ``inf`` where the data loader has no length.
        total_batches: Of the whole run; ``inf`` where nothing says.
        begun_before: Whether it had begun before it was watched, as far as that shows: a resumed run whose checkpoint
            knows nothing of this package, an optimizer that has stepped.
        is_first_process: Whether this is the process that decides.
        agree: Makes every process take the value that the first one gives; all of them must call it.
        mean: The mean over processes of what each gives, a tensor; all of them must call it.
        say: Tells the user a sentence, now and in the report.
        shadow_step: Takes training steps on a second set of weights; ``None`` where the loop cannot.
        cannot_verify: Why it cannot; empty if it can.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer] = ()
    schedulers: Sequence[Any] = ()
    layers: list[Layer] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    confidence: dict[str, float] = field(default_factory=dict)
    untrained: set[str] = field(default_factory=set)
    cost: StepCost | None = None
    steps: int = 0
    global_steps: int = 0
    batches: int = 0
    epoch: float = 0.0
    progress: float | None = None
    batches_per_epoch: float = math.inf
    total_batches: float = math.inf
    begun_before: bool = False
    is_first_process: bool = True
    agree: Callable[[Any], Any] = field(default=lambda value: value, repr=False)
    mean: Callable[[Tensor], Tensor] = field(default=lambda values: values, repr=False)
    say: Callable[[str], None] = field(default=lambda text: None, repr=False)
    shadow_step: "ShadowStep | None" = None
    cannot_verify: str = "this loop has no training_step to repeat"
    batches_before: int = 0
    """Batches that were done after the step before the latest."""
    loss: Tensor | None = None
    """Training loss of this batch, detached, once it is known; ``None`` in a loop that does not say."""
    latest_rates: list[float] = field(default_factory=list)
    """Learning rates of the latest step, by parameter group."""

    @property
    def frozen_layers(self) -> list[Layer]:
        """The layers that are frozen, in forward order."""
        frozen = set(self.frozen)
        return [layer for layer in self.layers if layer.name in frozen]

    @property
    def active(self) -> list[Layer]:
        """Layers that train and may freeze, in forward order."""
        frozen = set(self.frozen)
        return [layer for layer in self.layers if not layer.always_trains and layer.name not in frozen]

    @property
    def rates(self) -> list[float]:
        """The present learning rates, by parameter group; without those that an optimizer keeps to itself."""
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        return [float(group["lr"]) for group in groups if group.get("lr") is not None]

    @property
    def rates_rise(self) -> bool:
        """Whether a learning rate of the next step is higher than it was in the latest one."""
        return any(now > before for before, now in zip(self.latest_rates, self.rates, strict=False))

    @property
    def total_steps(self) -> float:
        """Steps of the whole run, going by those that are done; ``inf`` where that cannot be told."""
        # 22 / (22 / 120) is a little more than 120.
        return round(self.steps / self.progress, 6) if self.progress else math.inf

    def passed(self, batches: float) -> bool:
        """Whether the latest step came to or passed a multiple of so many batches."""
        return self.batches // batches > self.batches_before // batches

    def require_length(self, method: str) -> None:
        """Raise ``ValueError`` if the length of the run is not known, for a method that cannot do without."""
        if self.total_batches == math.inf:
            raise ValueError(
                f"{method} needs the length of the run: give max_epochs or max_steps, and with a data loader without "
                "length max_steps"
            )
