"""What a freezing training saves, and how it is checked before it is taken up."""

from typing import Any

from torch import Tensor, nn

from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.private.pytorch import tree_map_only
from smartfrz_lightning.report.ledger import Ledger
from smartfrz_lightning.report.timeline import Timeline

VERSION = 3


def saved_state(
    ledger: Ledger, run: TrainingRun, method: FreezingMethod, checked_epoch: int, counted: int
) -> dict[str, Any]:
    """Everything that a training needs to go on: plain values and tensors, which later steps do not move.

    Args:
        ledger: Holds the timeline.
        run: How far the training is.
        method: Its own state goes with it.
        checked_epoch: The last epoch at whose end the method was asked.
        counted: Batches that the engine counted.

    Example:
        >>> from smartfrz_lightning import StaticFreezeCallback
        >>> from smartfrz_lightning.engine import TrainingRun
        >>> from smartfrz_lightning.engine.state import saved_state
        >>> from smartfrz_lightning.report import Ledger
        >>> from torch import nn
        >>> state = saved_state(Ledger(), TrainingRun(nn.Identity()), StaticFreezeCallback(), 0, 0)
        >>> sorted(state)
        ['counters', 'method', 'timeline', 'version']
    """
    counters = {
        "steps": run.steps,
        "batches": run.batches,
        "batches_before": run.batches_before,
        "epoch": run.epoch,
        "progress": run.progress,
        "checked_epoch": checked_epoch,
        "counted": counted,
    }
    own = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), method.method_state())
    return {"version": VERSION, "timeline": ledger.state_dict(), "counters": counters, "method": own}


def check_version(state: dict[str, Any], method: str) -> None:
    """Raise ``ValueError`` if a saved state is not one that this package reads.

    Example:
        >>> from smartfrz_lightning.engine.state import check_version
        >>> check_version({"version": 1}, "SmartFreezeCallback")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: the checkpoint holds a SmartFreezeCallback of state version 1, this package reads 3: ...
    """
    if state.get("version") != VERSION:
        raise ValueError(
            f"the checkpoint holds a {method} of state version {state.get('version')}, this package reads {VERSION}: "
            "resume with the package that wrote it"
        )


def restore(state: dict[str, Any], model: nn.Module) -> Timeline:
    """The timeline in a saved state.

    Raises:
        ValueError: It is of another version, or was saved with another model.

    Example:
        >>> from smartfrz_lightning.engine.state import restore
        >>> from smartfrz_lightning.report import Timeline
        >>> from torch import nn
        >>> restore({"version": 3, "timeline": Timeline(steps=7).state_dict()}, nn.Linear(2, 2)).steps
        7
    """
    check_version(state, "freezing callback")
    timeline = Timeline.from_state_dict(state["timeline"])
    known = dict(model.named_parameters())
    lost = [name for layer in timeline.layers for name in layer.parameters if name not in known]
    if lost:
        raise ValueError(
            f"the checkpoint froze layers of another model: no parameter {lost[:3]} here. Resume with the model that "
            "was saved, or without ckpt_path"
        )
    return timeline
