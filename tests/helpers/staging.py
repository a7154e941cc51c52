"""Stages with predictors and schedules made for tests, and models whose weights are not those of a new network."""

import random

import torch
from lightning.pytorch import Callback
from models import Classifier, Vectors, mlp
from torch import nn
from torch.utils.data import DataLoader

from smartfrz_lightning import SmartFreezeCallback
from smartfrz_lightning.predictor.later import INPUTS
from smartfrz_lightning.stages import LaterStage, Schedule, StartStage, VerifyStage

EPOCHS = 15  # of 8 batches: 120 steps, of which the trial takes 12 to 24
FROZEN = ["net.0", "net.4"]
SHORT, LONG = Schedule(), Schedule(short=50, long=110)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}
ANYWAY = {"bound": -1e9}  # the prefix stays whatever the losses say
NEVER = {"bound": 1e9}  # everything trains


class Safe(nn.Module):
    """Log-odds by the depth of a prefix: by default 0.95 up to two thirds, and 0.05 behind."""

    def __init__(self, *odds):
        super().__init__()
        self.odds = odds or ((0.7, 3.0), (1.1, -3.0))

    def forward(self, inputs):
        return torch.tensor([next(odds for up_to, odds in self.odds if depth < up_to) for depth in inputs[:, 0]])


HALF_SURE = Safe((0.4, 3.0), (0.7, 0.9), (1.1, -3.0))  # p(safe) 0.95 of one layer, 0.71 of two
ONE_LAYER = Safe((0.4, 3.0), (1.1, -3.0))
NOTHING = Safe((1.1, -3.0))


@torch.no_grad()
def trained(net):
    """Weights with a direction in them, as training leaves them."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            rows, columns = (torch.randn(size, generator=generator) for size in (len(parameter), parameter[0].numel()))
            parameter += (0.3 * rows[:, None] * columns).view_as(parameter)
    return net


class Told(nn.Module):
    """Log-odds of each prefix, from one share of the run to another; before and after that, none is safe."""

    def __init__(self, *odds, progress=0.0, until=1.0):
        super().__init__()
        self.odds, self.progress, self.until, self.seen = torch.tensor(odds), progress, until, []

    def forward(self, inputs):
        self.seen.append(inputs)
        progress = 1 - 10 ** float(inputs[0, INPUTS.index("left")])
        return self.odds if self.progress - 1e-4 < progress < self.until else torch.full_like(self.odds, -9)


def later(*odds, **how):
    """A later stage with these log-odds, in runs of the tests' length."""
    return LaterStage(Told(*odds, **how), schedule=LONG)


def smart(predictor=None, verify=True, schedule=SHORT, later=False, verdict=None, probe=None, **how):
    """The default with a predictor that is told, and a trial that ends as it is told."""
    start = StartStage(predictor or Safe(), probe_steps=probe, schedule=schedule)
    trial = VerifyStage(schedule=schedule, **(verdict or {})) if verify is True else verify
    return SmartFreezeCallback(start, trial, later, **how)


PROBE = 5  # steps


def probing(predictor=None, **how):
    """The start stage alone, with a probe of as many steps."""
    return smart(predictor, verify=False, probe=PROBE, **how)


class Batches:
    """A loader that shuffles by the Trainer's epoch and, within an epoch, goes on where it was saved."""

    def __init__(self, module):
        self.module, self.position = module, 0

    def __len__(self):
        return 8

    def __iter__(self):
        order = list(range(8))
        random.Random(self.module.current_epoch).shuffle(order)
        batches = list(DataLoader(Vectors(), 8))
        self.position %= 8
        while self.position < 8:
            self.position += 1
            yield batches[order[self.position - 1]]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class InOrder(Classifier):
    """Goes on in the middle of an epoch where it was saved."""

    def __init__(self, net=None, optimizer=None):
        super().__init__(trained(mlp()) if net is None else net, optimizer)

    def train_dataloader(self):
        return Batches(self)


def same(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def moved(before, after):
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def quiet_mlp(**how):
    """Without dropout: a layer that is frozen draws nothing else."""
    net = trained(mlp(**how))
    net[3].p = 0.0
    return net


def fitted(make_trainer, make, freezer, *callbacks, **how):
    """A model that is made and trained with the same random numbers as any other; itself, the freezer, the Trainer."""
    torch.manual_seed(3)
    model, trainer = make(), make_trainer(freezer, *callbacks, **{"max_epochs": EPOCHS, **how})
    trainer.fit(model)
    return model, freezer, trainer


class ByHand(SmartFreezeCallback):
    """What the start stage has frozen trains again from the step on at which a trial would begin."""

    def __init__(self):
        super().__init__(StartStage(Safe()), verify=False, later=False)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.timeline.steps == 12:
            self.thaw()


class Watch(Callback):
    """Weights and optimizer states at the start and after every batch."""

    def __init__(self):
        self.states, self.optimizers = [], []

    def look(self, pl_module):
        self.states.append({name: tensor.clone() for name, tensor in pl_module.net.state_dict().items()})
        named = {id(p): name for name, p in pl_module.net.named_parameters()}
        self.optimizers.append({named[id(p)] for optimizer in pl_module.trainer.optimizers for p in optimizer.state})

    def on_train_start(self, trainer, pl_module):
        self.look(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.look(pl_module)


def notes(freezer):
    return "\n".join(freezer.timeline.notes)
