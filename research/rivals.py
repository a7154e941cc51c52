"""What practitioners do in place of freezing: the head first, and learning rates that decay towards the input.

For ``smartfrz benchmark``; see ``research/configs/practice/`` and ``field/``. Needs the extra ``imagenet``.
"""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import AdamW, Optimizer

from smartfrz_lightning import StaticFreezeCallback
from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.experiments.classifier import ImageClassifier


class ProbeThenTuneCallback(StaticFreezeCallback):
    """Train the head alone, then everything (Kumar et al. 2022; Lightning's ``BackboneFinetuning`` without its rates).

    Args:
        share: Of the run, for which the head alone trains.
    """

    thaws = True

    def __init__(self, share: float = 0.25, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.share = share

    def check_due(self, run: TrainingRun) -> bool:
        return super().check_due(run) or (bool(run.frozen) and (run.progress or 0.0) >= self.share)

    def select(self, run: TrainingRun) -> Decision:
        return Decision(thaw=run.frozen) if run.frozen else Decision(super().select(run))

    def _count(self, run: TrainingRun) -> int:
        return len(run.active)


class BackboneClassifier(ImageClassifier):
    """A network of timm's for Lightning's ``BackboneFinetuning``, which trains the head first."""

    @property
    def backbone(self) -> nn.ModuleList:
        """All of the network but its head."""
        head = self.network.get_classifier()  # type: ignore[operator]
        return nn.ModuleList(module for module in self.network.children() if module is not head)

    def _groups(self) -> Any:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


class LayerDecayClassifier(ImageClassifier):
    """A network of timm's whose learning rates decay towards the input (Howard and Ruder 2018, Clark et al. 2020).

    Args:
        network: Of timm's.
        optimizer: Makes the optimizer from parameter groups.
        decay: Rate of a layer relative to that of the layer behind it.
        kwargs: Arguments of ``ImageClassifier``.
    """

    def __init__(
        self, network: nn.Module, optimizer: OptimizerCallable = AdamW, decay: float = 0.8, **kwargs: Any
    ) -> None:
        super().__init__(network, optimizer=_scaled(optimizer), **kwargs)
        self.decay = decay

    def _groups(self) -> Any:
        return param_groups_layer_decay(self.network, weight_decay=0.01, layer_decay=self.decay)


def _scaled(optimizer: OptimizerCallable) -> Callable[[Any], Optimizer]:
    def make(groups: Any) -> Optimizer:
        made = optimizer(groups)
        for group in made.param_groups:
            group["lr"] *= group["lr_scale"]
        return made

    return make
