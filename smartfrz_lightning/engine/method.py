"""FreezingMethod: what a freezing method is, for whatever loop trains."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from smartfrz_lightning.engine.run import TrainingRun


@dataclass(frozen=True)
class Decision:
    """Layers that should freeze and layers that should train again.

    Attributes:
        freeze: Names, or a mapping to the confidence in each, 0 to 1.
        thaw: Names of frozen layers.
        held: What freezes is as it was before training: its statistics need not settle.

    Example:
        >>> from smartfrz_lightning.engine import Decision
        >>> Decision(freeze={"stem": 0.97}, thaw=["block"]).thaw
        ['block']
    """

    freeze: Collection[str] | Mapping[str, float | None] = field(default_factory=dict)
    thaw: Collection[str] = ()
    held: bool = False

    @classmethod
    def of(cls, answer: "Decision | Collection[str] | Mapping[str, float | None]") -> "Decision":
        """A method's answer in full: bare names freeze, without a confidence.

        Example:
            >>> from smartfrz_lightning.engine import Decision
            >>> Decision.of(["stem"]) == Decision(freeze={"stem": None}) == Decision.of(Decision(freeze=["stem"]))
            True
        """
        whole = answer if isinstance(answer, Decision) else cls(answer)
        chosen = whole.freeze
        sure = dict(chosen) if isinstance(chosen, Mapping) else dict.fromkeys(chosen)
        freeze = {name: None if value is None else float(value) for name, value in sure.items()}
        return cls(freeze, tuple(whole.thaw), whole.held)


class FreezingMethod(ABC):
    """A rule that says which layers should stop training now. Everything else is the engine's.

    A method says in :meth:`select` what should freeze, and overrides of the rest what it needs. What it knows of a
    model it sets in :meth:`reset`, not in ``__init__``: one object may see several models, one after the other.

    Args:
        every_n_epochs: Ask at the end of every n-th epoch; 1 if neither interval is given, or every tenth of a run that
            has a single epoch or none.
        every_n_train_steps: Ask every n optimizer steps instead.
        exclude: Shell-style patterns of modules, layers or parameters that always train, such as ``"head"`` or
            ``"*.attn.*"``.
        cache_front: Keep what the frozen front gives for each sample, so that its forward pass is not run again for
            samples that come again: ``True`` keeps it in memory, a folder in files, where later runs with the same
            front find it. The samples are known by their content, so that any data loader will do; with random
            augmentation they do not come again, and the cache switches itself off. Dropout inside the front is off.
        cache_gigabytes: The most that is kept, by each process.
        cache_dtype: Keep it in another type, such as ``"bfloat16"``, which takes half of the room.

    Raises:
        ValueError: Both intervals are given, one is below 1, or an argument of the cache is out of range.

    Example:
        >>> from torch import nn
        >>> from smartfrz_lightning.engine import FreezingMethod, TrainingRun
        >>> from smartfrz_lightning.layers import Layer
        >>> from smartfrz_lightning.report import Timeline
        >>> class FreezeNext(FreezingMethod):
        ...     def select(self, run):
        ...         return [run.active[0].name]
        >>> layers = [Layer("embed", (), (), (), 8, "excluded"), Layer("block", (), (), (), 8)]
        >>> FreezeNext(every_n_epochs=2).select(TrainingRun(nn.Identity(), timeline=Timeline(layers)))
        ['block']
    """

    works_sharded = True
    """Whether the method can do with parameters sharded over processes (FSDP2)."""

    thaws = False
    """Whether the method may answer with layers to thaw: it is then asked also when none is left to freeze."""

    @property
    def reads_gradients(self) -> bool:
        """Whether it looks at gradients when an optimizer is about to step."""
        return type(self).gradients_ready is not FreezingMethod.gradients_ready

    def __init__(
        self,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        exclude: Sequence[str] | str = (),
        cache_front: bool | str = False,
        cache_gigabytes: float = 4.0,
        cache_dtype: str | None = None,
    ) -> None:
        super().__init__()
        if every_n_epochs is not None and every_n_train_steps is not None:
            raise ValueError(
                f"every_n_epochs={every_n_epochs} and every_n_train_steps={every_n_train_steps}: give one of them"
            )
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_train_steps", every_n_train_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if cache_gigabytes <= 0:
            raise ValueError(f"cache_gigabytes={cache_gigabytes}: must be above 0; cache_front=False keeps nothing")
        kept = getattr(torch, cache_dtype, None) if cache_dtype else torch.float32
        if not isinstance(kept, torch.dtype) or not kept.is_floating_point:
            raise ValueError(f"cache_dtype={cache_dtype!r}: must be a floating-point type, such as 'bfloat16'")
        self.cache_front, self.cache_gigabytes, self.cache_dtype = cache_front, cache_gigabytes, cache_dtype
        self._given_interval = bool(every_n_epochs or every_n_train_steps)
        self.every_n_epochs = every_n_epochs if every_n_train_steps else every_n_epochs or 1
        self.every_n_train_steps = every_n_train_steps
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    @abstractmethod
    def select(self, run: TrainingRun) -> Decision | Collection[str] | Mapping[str, float | None]:
        """Names of the active layers that should freeze now. Called in the first process alone.

        A method that is more or less sure of a layer returns a mapping, with its confidence in each, 0 to 1; one that
        also thaws returns a :class:`Decision`.
        """

    # --- what a method may override, in the order in which it is called; on every process

    def reset(self) -> None:
        """Forget everything about a model: the training of another one begins."""

    def prepare(self, run: TrainingRun) -> None:
        """A fit is set up, before optimizers take their state from a checkpoint; layers are known only if it goes on.

        Raises:
            ValueError: The method cannot work in such a run.
        """

    def start(self, run: TrainingRun) -> None:
        """Training begins or goes on; layers are known only if it goes on.

        Raises:
            ValueError: The method cannot work in such a run.
        """

    def before_batch(self, run: TrainingRun) -> None:
        """A training batch is about to begin."""

    def layers_found(self, run: TrainingRun) -> None:
        """The layers are known, after the first training step; called again if more turn up."""

    def first_gradients(self, run: TrainingRun, optimizer: Optimizer) -> None:
        """An optimizer is about to step while the layers are not known yet."""

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        """An optimizer is about to step.

        Gradients are as averaged over processes and unscaled, before clipping (in a loop of your own: as the optimizer
        gets them); here they can be watched, or taken away.
        """

    def step_done(self, run: TrainingRun) -> None:
        """A training batch is done in which an optimizer stepped."""

    def check_due(self, run: TrainingRun) -> bool:
        """Whether to ask after this step; must be the same on every process."""
        if not self._given_interval and run.total_batches <= run.batches_per_epoch and run.total_batches < math.inf:
            return run.passed(max(1.0, run.total_batches / 10)) and run.batches < run.total_batches
        return bool(self.every_n_train_steps) and run.timeline.steps % self.every_n_train_steps == 0

    def changed(self, run: TrainingRun, frozen: Collection[str], thawed: Collection[str]) -> None:
        """Layers froze, or train again."""

    def method_state(self) -> dict[str, Any]:
        """What must be saved so that the training can go on: tensors and plain values."""
        return {}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        """Take up what :meth:`method_state` gave."""

    def end(self, run: TrainingRun) -> None:
        """Training is over, or broke off: let go of hooks."""
