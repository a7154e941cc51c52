"""Low-rank adapters in place of full fine-tuning, to compare freezing with. Needs ``peft``."""

import fnmatch
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from peft import LoraConfig, inject_adapter_in_model


class LoRA(Callback):
    """Train low-rank adapters and the head alone (Hu et al. 2022, "LoRA").

    Args:
        target_modules: Modules that get an adapter: ends of their names, or one regular expression for whole names.
        train: Patterns of parameters that train as they are, such as the new head's ``"network.classifier.*"``.
        rank: Of the adapters; their scale is twice that.

    Raises:
        ValueError: On ``fit``: no module has such a name, or no parameter matches ``train``.
    """

    def __init__(self, target_modules: Sequence[str] | str, train: Sequence[str], rank: int = 8) -> None:
        self.target_modules = target_modules if isinstance(target_modules, str) else list(target_modules)
        self.train, self.rank = train, rank

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":  # adapters would begin anew
            return
        config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=self.target_modules)
        inject_adapter_in_model(config, pl_module)  # everything else freezes
        for pattern in self.train:
            matching = [p for name, p in pl_module.named_parameters() if fnmatch.fnmatchcase(name, pattern)]
            if not matching:
                raise ValueError(f"train={self.train}: no parameter matches {pattern!r}")
            for parameter in matching:
                parameter.requires_grad_(True)
