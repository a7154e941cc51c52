"""LoRA through peft trains adapters and the head alone, stands beside other methods, and resumes."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, mlp

pytest.importorskip("peft")

from smartfrz_lightning import StaticFreezeCallback
from smartfrz_lightning.experiments.lora import LoRA


def lora(**how):
    return LoRA(**{"target_modules": ["net.0", "net.4", "net.7"], "train": ["net.9.*"], "rank": 2, **how})


def test_adapters_and_the_head_train(make_trainer):
    model = Classifier(mlp())
    before = copy.deepcopy(dict(model.named_parameters()))
    make_trainer(lora()).fit(model)
    after = {name.replace(".base_layer", ""): p for name, p in model.named_parameters()}
    still = {name for name, p in before.items() if torch.equal(p, after[name])}
    assert still == set(before) - {"net.9.weight", "net.9.bias"}
    adapters = [p for name, p in after.items() if "lora_B" in name]
    assert len(adapters) == 3 and all(p.abs().sum() > 0 for p in adapters)


def test_what_it_costs_is_measured(make_trainer):
    def cost(*callbacks):
        freezer = StaticFreezeCallback(layers=0)
        make_trainer(*callbacks, freezer, max_epochs=1).fit(Classifier(mlp()))
        return freezer.timeline.spent.total

    assert 0.5 < cost(lora()) / cost() < 1.0  # no weight gradients of the three layers, but small products beside them


def test_a_resumed_run_is_the_same(make_trainer, tmp_path):
    def fit(*callbacks, ckpt_path=None):
        torch.manual_seed(1)
        model = Classifier(mlp())
        model.net[3].p = 0.0
        make_trainer(lora(), *callbacks, enable_checkpointing=True).fit(model, ckpt_path=ckpt_path)
        return model

    net = fit(ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)).state_dict()
    again = fit(ckpt_path=str(tmp_path / "epoch=0.ckpt")).state_dict()
    assert net.keys() == again.keys() and all(torch.equal(tensor, again[name]) for name, tensor in net.items())


@pytest.mark.parametrize("wrong", [{"train": ["nothing.*"]}, {"target_modules": ["nothing"]}, {"rank": 0}])
def test_bad_arguments(make_trainer, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "target_modules" not in wrong else "nothing"):
        make_trainer(lora(**wrong)).fit(Classifier(mlp()))
