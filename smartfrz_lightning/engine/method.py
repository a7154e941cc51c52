"""FreezingMethod: a freezing rule with the options that all methods share."""

import math
from abc import ABC
from collections.abc import Sequence

import torch

from smartfrz_lightning.engine.rule import FreezingRule
from smartfrz_lightning.engine.run import TrainingRun


class FreezingMethod(FreezingRule, ABC):
    """A rule that says which layers should stop training now. Everything else is the engine's.

    A method says in ``select`` what should freeze, and overrides of the rest what it needs.

    Args:
        every_n_epochs: Ask at the end of every n-th epoch; 1 if neither interval is given, or every tenth of a run that
            has a single epoch or none.
        every_n_train_steps: Ask every n optimizer steps instead.
        exclude: Shell-style patterns of modules, layers or parameters that always train, such as ``"head"`` or
            ``"*.attn.*"``.
        cache_front: Keep what the frozen front gives for each sample, so that its forward pass is not run again for
            batches of known samples: ``True`` in memory, a folder also in files for later runs. With random
            augmentation samples do not come again, and the cache switches itself off. Dropout inside the front is off.
        cache_gigabytes: The most that is kept, by each process.
        cache_dtype: Keep it in another type, such as ``"bfloat16"``, which takes half of the room.

    Raises:
        ValueError: Both intervals are given, one is below 1, or an argument of the cache is out of range.

    Examples:
        >>> from torch import nn
        >>> from smartfrz_lightning.engine import FreezingMethod, TrainingRun
        >>> from smartfrz_lightning.layers import Layer
        >>> class FreezeNext(FreezingMethod):
        ...     def select(self, run):
        ...         return [run.active[0].name]
        >>> layers = [Layer("embed", (), (), (), 8, "excluded"), Layer("block", (), (), (), 8)]
        >>> FreezeNext(every_n_epochs=2).select(TrainingRun(nn.Identity(), layers=layers))
        ['block']
    """

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
        if not isinstance(exclude, str | Sequence) or not all(isinstance(pattern, str) for pattern in exclude):
            raise ValueError(f"exclude={exclude!r}: give a pattern, such as 'head', or several in a list")
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def check_due(self, run: TrainingRun) -> bool:
        if not self._given_interval and run.total_batches <= run.batches_per_epoch and run.total_batches < math.inf:
            return run.passed(max(1.0, run.total_batches / 10)) and run.batches < run.total_batches
        return bool(self.every_n_train_steps) and run.global_steps % self.every_n_train_steps == 0

    def epoch_check_due(self, run: TrainingRun, epoch: int) -> bool:
        return bool(self.every_n_epochs) and (epoch + 1) % self.every_n_epochs == 0
