"""Random combinations, each interrupted and resumed. The number in a test's name reproduces it.

Hundreds more with ``pytest -m slow tests/callbacks/test_stress.py``.
"""

import random

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from models import scheduled
from scripted import ScriptedFreeze
from test_company import Watch
from test_resume import Kill, Killed, Seeded, cosine
from torch import nn

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
}


def random_net(lot):
    layers, width = [], 12
    for _ in range(lot.randint(2, 6)):
        out = lot.choice([4, 8, 12])
        layers += [nn.Linear(width, out, bias=lot.random() < 0.5)]
        layers += lot.choice([[], [nn.BatchNorm1d(out)], [nn.LayerNorm(out)], [nn.GroupNorm(2, out)]])
        layers += [nn.ReLU()] + lot.choice([[], [nn.Dropout(0.2)]])
        width = out
    return nn.Sequential(*layers, nn.Linear(width, 3))


class Random(Seeded):
    def __init__(self, seed):
        super().__init__()
        lot = random.Random(seed)
        torch.manual_seed(seed)
        self.net = random_net(lot)
        self.make = OPTIMIZERS[lot.choice(list(OPTIMIZERS))]
        if lot.random() < 0.5:
            self.make = scheduled(cosine, self.make, "step")

    def configure_optimizers(self):
        return self.make(self.parameters())


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 300))])
def test_random_combination(make_trainer, tmp_path, seed):
    lot = random.Random(f"run {seed}")
    count = sum(isinstance(module, nn.Linear) for module in Random(seed).net)
    accumulate = lot.choice([1, 1, 2, 3])
    steps = 4 * -(-8 // accumulate)
    freezable = lot.sample(range(count - 1), lot.randint(1, count - 1))
    script = {}
    for layer in freezable:
        script.setdefault(lot.randint(1, steps - 1), []).append(layer)
    thaw = {}
    for step, layers in script.items():  # some train again, and most of those stay so
        if step < steps - 1 and lot.random() < 0.4:
            thaw.setdefault(lot.randint(step + 1, steps - 1), []).append(layers[0])
    settings = {
        "max_epochs": 4,
        "precision": lot.choice(["32-true", "bf16-mixed"]),
        "accumulate_grad_batches": accumulate,
        "gradient_clip_val": lot.choice([None, 0.1]),
        "limit_val_batches": lot.choice([0, 1]),
    }

    whole, freezer = Random(seed), ScriptedFreeze(script, thaw)
    make_trainer(freezer, Watch(freezer), **settings).fit(whole)
    assert len(freezer.frozen) == len(freezable) - sum(map(len, thaw.values()))
    for name, parameter in whole.named_parameters():
        frozen = any(name in layer.parameters for layer in freezer.layers if layer.name in freezer.frozen)
        assert parameter.requires_grad != frozen, name

    every = lot.choice([{"every_n_train_steps": lot.randint(1, steps // 2)}, {"save_on_train_epoch_end": True}])
    checkpoint = ModelCheckpoint(tmp_path / "saved", save_top_k=1, **every)
    kill = Kill(lot.randint(steps // 2 + 1, steps - 1))
    with pytest.raises(Killed):
        make_trainer(ScriptedFreeze(script, thaw), checkpoint, kill, enable_checkpointing=True, **settings).fit(
            Random(seed)
        )
    path = max((tmp_path / "saved").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    resumed, again = Random(seed), ScriptedFreeze(script, thaw)
    make_trainer(again, Watch(again), **settings).fit(resumed, ckpt_path=path)
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert again.timeline.events == freezer.timeline.events and again.timeline.spent == freezer.timeline.spent
