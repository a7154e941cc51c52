"""LinearFreezeCallback: layer-wise cosine learning rates that end one after another (FreezeOut)."""

import math
from typing import Any

from torch.optim import LBFGS

from smartfrz_lightning.callbacks.base import FreezingCallback
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.stages.start import check_shares


class LinearFreezeCallback(FreezingCallback):
    r"""Linear Freezing, FreezeOut (Brock et al. 2017; Eq. 6 in the SmartFRZ paper).

    The learning rate of layer i follows ``0.5 * lr * (1 + cos(pi * t / t_i))``, with t the share of the run done, and
    the layer freezes at ``t_i``. In forward order the ``t_i`` go evenly from ``t_0`` for the first layer to 1 for the
    last. What never freezes (the last layer, ``exclude``) has ``t_i = 1``.

    The callback gives each layer a parameter group of its own, so a checkpoint of such a run resumes with this
    callback only. The first training step shows the layers and is done at the optimizer's own rates.

    - **When**: training from scratch on a fixed budget, without a schedule of your own.
    - **When not**: the optimizer's groups or a scheduler matter to you: it takes both over.
    - **Cost**: a parameter group for each layer.
    - **Source**: Brock et al. 2017, "FreezeOut: Accelerate Training by Progressively Freezing Layers".

    Args:
        t_0: When the first layer freezes, as a share of the run.
        kwargs: Arguments of ``FreezingCallback``, such as ``exclude``.

    Raises:
        ValueError: ``t_0`` is not between 0 and 1; on ``fit``: the module configures a learning-rate scheduler, or
            the run has no known length.

    Examples:
        >>> from smartfrz_lightning import LinearFreezeCallback
        >>> LinearFreezeCallback(t_0=0.5).end_times(5)
        [0.5, 0.625, 0.75, 0.875, 1.0]
    """

    works_sharded = False  # a checkpoint's optimizer comes back before its layers

    def __init__(self, t_0: float = 0.5, **kwargs: Any) -> None:
        super().__init__(every_n_train_steps=1, **kwargs)
        check_shares(t_0=t_0)
        self.t_0 = t_0

    def end_times(self, layers: int) -> list[float]:
        """When each of so many layers freezes, as shares of the run."""
        return [self.t_0 + (1 - self.t_0) * number / max(1, layers - 1) for number in range(layers)]

    def prepare(self, run: TrainingRun) -> None:
        if run.schedulers:
            scheduler = type(run.schedulers[0]).__name__
            raise ValueError(
                f"LinearFreezeCallback sets every layer's learning rate itself, and {type(run.model).__name__} "
                f"configures the scheduler {scheduler}: return the optimizer alone from configure_optimizers"
            )
        if any(isinstance(optimizer, LBFGS) for optimizer in run.optimizers):
            raise ValueError("LinearFreezeCallback needs parameter groups, which LBFGS does not have")
        if any(group.get("lr") is None for optimizer in run.optimizers for group in optimizer.param_groups):
            raise ValueError("LinearFreezeCallback sets learning rates, and the optimizer keeps its own to itself")
        self._split_groups(run)  # before the optimizer's state comes back from a checkpoint

    def start(self, run: TrainingRun) -> None:
        run.require_length("LinearFreezeCallback")

    def layers_found(self, run: TrainingRun) -> None:
        self._split_groups(run)

    def before_batch(self, run: TrainingRun) -> None:
        done, ends = run.progress or 0.0, self._ends(run)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                if "full_lr" in group:
                    end = ends.get(group["layer"], 1.0)
                    group["lr"] = 0.5 * group["full_lr"] * (1 + math.cos(math.pi * min(1.0, done / end)))

    def check_due(self, run: TrainingRun) -> bool:
        return bool(self.select(run))

    def select(self, run: TrainingRun) -> list[str]:
        done, ends = run.progress or 0.0, self._ends(run)
        return [layer.name for layer in run.active if done >= ends[layer.name]]

    def _ends(self, run: TrainingRun) -> dict[str, float]:
        used = [layer for layer in run.layers if layer.always_trains != "unused"]
        ends = dict(zip([layer.name for layer in used], self.end_times(len(used)), strict=True))
        return {layer.name: 1.0 if layer.always_trains else ends[layer.name] for layer in run.layers}

    def _split_groups(self, run: TrainingRun) -> None:
        """Give every layer its own parameter groups, one for each group that its parameters were in.

        A new group has the settings of the old one, and two entries more: ``layer``, its name (empty for parameters of
        no layer), and ``full_lr``, the rate that the old group had.
        """
        owner = {id(run.model.get_parameter(name)): layer.name for layer in run.layers for name in layer.parameters}
        for optimizer in run.optimizers:
            if not run.layers or any("full_lr" in group for group in optimizer.param_groups):
                continue
            groups = []
            for group in optimizer.param_groups:
                for layer in [*(layer.name for layer in run.layers), ""]:
                    at = [n for n, parameter in enumerate(group["params"]) if owner.get(id(parameter), "") == layer]
                    if at:
                        own = {key: [group[key][n] for n in at] for key in ("params", "param_names") if key in group}
                        groups.append({**group, **own, "layer": layer, "full_lr": group["lr"]})
            optimizer.param_groups[:] = groups
