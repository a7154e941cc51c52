"""Low-rank adapters in place of full fine-tuning, to compare freezing with. Needs the extra ``lora``."""

import fnmatch
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from smartfrz_lightning.extras import require


class LoRA(Callback):
    """Train low-rank adapters and the head alone (Hu et al. 2022, "LoRA"), through ``peft``.

    Before the optimizer is made, adapters are added to some of the modules, and everything else is frozen but what
    ``train`` names.

    Args:
        target_modules: Modules that get an adapter: ends of their names, or one regular expression for whole names;
            ``"all-linear"`` for all linear layers.
        train: Patterns of parameters that train as they are, such as the new head's ``"network.classifier.*"``.
        rank: Of the adapters.
        alpha: Their scale, as a multiple of the rank.
        dropout: In front of them.

    Raises:
        ImportError: ``peft`` is not installed.
        ValueError: On ``fit``: no module has such a name, or no parameter matches ``train``.
    """

    def __init__(
        self,
        target_modules: Sequence[str] | str,
        train: Sequence[str] = (),
        rank: int = 8,
        alpha: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        require("peft", "lora")
        if rank < 1:
            raise ValueError(f"rank={rank}: must be at least 1")
        self.target_modules = target_modules if isinstance(target_modules, str) else list(target_modules)
        self.train, self.rank, self.alpha, self.dropout = list(train), rank, alpha, dropout

    def setup(self, trainer: Trainer | None, pl_module: LightningModule, stage: str) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        if stage != "fit" or any(isinstance(module, LoraLayer) for module in pl_module.modules()):
            return
        how: dict[str, Any] = {"lora_alpha": self.alpha * self.rank, "lora_dropout": self.dropout}
        inject_adapter_in_model(LoraConfig(r=self.rank, target_modules=self.target_modules, **how), pl_module)
        for pattern in self.train:
            matching = [p for name, p in pl_module.named_parameters() if fnmatch.fnmatchcase(name, pattern)]
            if not matching:
                raise ValueError(f"train={self.train}: no parameter matches {pattern!r}")
            for parameter in matching:
                parameter.requires_grad_(True)
