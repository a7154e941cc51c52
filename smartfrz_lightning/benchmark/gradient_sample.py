"""GradientSample: one gradient of a layer in full, and its 1,024 sampled values (Fig. 3 of the paper)."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch.optim import Optimizer

from smartfrz_lightning.history.sampling import sample_indices


class GradientSample(Callback):
    """Write ``gradient.safetensors`` into the run's folder: the gradient of one weight at one step.

    Args:
        weight: Name of the parameter; by default the largest one.
        step: After how many optimizer steps.
        sample_size: How many values the sample has.
    """

    def __init__(self, weight: str | None = None, step: int = 10, sample_size: int = 1024) -> None:
        self.weight = weight
        self.step = step
        self.sample_size = sample_size

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step != self.step:
            return
        weights: dict[str, Any] = dict(pl_module.named_parameters())
        name = self.weight or max(weights, key=lambda key: weights[key].numel())
        gradient = weights[name].grad.detach().float().cpu().flatten()
        index = sample_indices(gradient.numel(), self.sample_size, name=name)
        path = Path(trainer.log_dir or trainer.default_root_dir) / "gradient.safetensors"
        save_file({"gradient": gradient, "sample": gradient[index]}, path, {"weight": name, "step": str(self.step)})
