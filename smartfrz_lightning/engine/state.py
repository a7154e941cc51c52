"""What a freezing training saves, and how it is checked before it is taken up."""

from typing import Any

from torch import Tensor, nn

from smartfrz_lightning.engine.method import FreezingMethod
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.private.pytorch import tree_map_only
from smartfrz_lightning.report.ledger import Ledger
from smartfrz_lightning.report.timeline import Timeline

VERSION = 4


def saved_state(ledger: Ledger, run: TrainingRun, method: FreezingMethod, counted: dict[str, int]) -> dict[str, Any]:
    """Everything that a training needs to go on: plain values and tensors, which later steps do not move.

    Args:
        ledger: Holds the timeline.
        run: How far the training is, and what is frozen.
        method: Its own state goes with it.
        counted: Counters of the engine.
    """
    names = ("steps", "global_steps", "batches", "batches_before", "epoch", "progress")
    own = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), method.method_state())
    return {
        "version": VERSION,
        "timeline": ledger.state_dict(),
        "counters": {**counted, **{name: getattr(run, name) for name in names}},
        "frozen": list(run.frozen),
        "untrained": sorted(run.untrained),
        "confidence": dict(run.confidence),
        "method": own,
    }


def check_version(state: dict[str, Any], method: str) -> None:
    """Raise ``ValueError`` if a saved state is not one that this package reads."""
    if state.get("version") != VERSION:
        raise ValueError(
            f"the checkpoint holds a {method} of state version {state.get('version')}, this package reads {VERSION}: "
            "resume with the package that wrote it"
        )


def restore(state: dict[str, Any], model: nn.Module) -> Timeline:
    """The timeline in a saved state.

    Raises:
        ValueError: It is of another version, or was saved with another model.
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
