"""StaticFreezeCallback: the first layers are frozen from the start."""

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.layers.put_back import put_back


class StaticFreezeCallback(FreezingCallback):
    """Fine-tune only the last layers, as is common practice (studied by Lee et al. 2019, "What Would Elsa Do?").

    The layers are found in the first training step; what that step moved in the frozen ones is put back, so they are
    frozen from the start, with BatchNorm in eval mode from the second step on. ``layers=0`` freezes nothing and
    measures plain training.

    - **When**: you know what to freeze: half of a network whose new task has new classes of the same kind of data.
    - **When not**: from scratch, or where the data look different (blurred, inverted, another sensor).
    - **Cost**: none to speak of.
    - **Source**: Lee et al. 2019, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning".

    Args:
        layers: How many layers from the front, or their share of all layers if it is below 1 (at least one layer).
        kwargs: Arguments of ``FreezingCallback``, such as ``exclude``.

    Raises:
        ValueError: ``layers`` is negative, or a share of 1 or more; in the first step: it is
            more than may freeze.
    """

    works_sharded = False

    def __init__(self, layers: int | float = 0.5, **kwargs: Any) -> None:
        super().__init__(every_n_train_steps=1, **kwargs)
        known = isinstance(layers, Real) and not isinstance(layers, bool) and layers >= 0
        if not known or (layers >= 1 and not isinstance(layers, Integral)):
            raise ValueError(
                f"layers={layers!r}: give a whole number of layers, such as 3, or a share below 1, such as 0.5"
            )
        self.layers_to_freeze = layers

    def reset(self) -> None:
        self._start: dict[str, Tensor] = {}

    def before_batch(self, run: TrainingRun) -> None:
        if not run.layers and not self._start and self.layers_to_freeze:
            self._start = {name: tensor.detach().clone() for name, tensor in _tensors(run.model).items()}

    def layers_found(self, run: TrainingRun) -> None:
        if self._count(run) > len(run.active):
            raise ValueError(
                f"layers={self.layers_to_freeze}: {type(run.model).__name__} has {len(run.active)} layers that may "
                "freeze; the last one that leads to the loss always trains"
            )

    def check_due(self, run: TrainingRun) -> bool:
        return run.global_steps == 1 and bool(self.layers_to_freeze)

    def select(self, run: TrainingRun) -> list[str]:
        return self._first(run)

    def optimizer_stepped(self, run: TrainingRun, optimizer: Optimizer) -> None:
        if self._start:  # in the first step alone
            self._put_back(run, self._first(run))  # before averages of the weights see what has moved

    def changed(self, run: TrainingRun, frozen: Collection[str], thawed: Collection[str]) -> None:
        self._put_back(run, run.frozen)
        self._start = {}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        if run.frozen and self._count(run) != len(run.frozen):
            run.say(f"layers={self.layers_to_freeze} is not used: the resumed run has {len(run.frozen)} layers frozen.")

    def _first(self, run: TrainingRun) -> list[str]:
        return [layer.name for layer in run.active[: self._count(run)]]

    def _put_back(self, run: TrainingRun, names: Collection[str]) -> None:
        """What the first step moved in these layers."""
        layers = [layer for layer in run.layers if layer.name in names]
        inside = {name for layer in layers for name in [*layer.parameters, *layer.stateful]}
        now = _tensors(run.model)
        for name, tensor in self._start.items():
            if name in inside or name.rpartition(".")[0] in inside:
                put_back(now.get(name), tensor)

    def _count(self, run: TrainingRun) -> int:
        share = self.layers_to_freeze
        if share >= 1 or not share:
            return int(share)
        free = sum(not layer.always_trains for layer in run.layers)
        return min(free, max(1, int(share * len(run.layers))))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """By the names that layers have for them; a ``state_dict()`` may have others."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
