"""Adapters and the head train, and nothing else does."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from research.lora import LoRA


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch):
        return self.net(*batch).square().mean()

    def validation_step(self, batch):
        self.log("loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model, lora):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    data = DataLoader(TensorDataset(torch.randn(16, 8)), batch_size=4)
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[lora], **quiet)
    trainer.fit(model, data)
    return trainer.validate(model, data, verbose=False)


def test_adapters_and_the_head_train():
    model = Regression()
    before = copy.deepcopy(dict(model.named_parameters()))
    fit(model, LoRA(["net.0", "net.2"], ["net.4.*"], rank=2))
    after = {name.replace(".base_layer", ""): parameter for name, parameter in model.named_parameters()}
    still = {name for name, parameter in before.items() if torch.equal(parameter, after[name])}
    assert still == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    assert sum("lora_B" in name and parameter.any().item() for name, parameter in after.items()) == 2


def test_patterns_that_match_nothing_are_an_error():
    with pytest.raises(ValueError, match="nothing"):
        fit(Regression(), LoRA(["net.0"], ["nothing.*"]))
