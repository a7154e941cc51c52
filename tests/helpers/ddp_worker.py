"""Run by torchrun in the tests: fits under DDP."""

import os
import signal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from models import Classifier, Vectors
from scripted import ScriptedFreeze
from staging import ANYWAY, LONG, NEVER, SHORT, Safe, notes, smart, trained
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader, DistributedSampler
from two_processes import run_cases

from smartfrz_lightning import AttentionFreezeCallback, PlanCallback, SmartFreezeCallback
from smartfrz_lightning.stages import IntervalStage, LaterStage, StartStage


def plain_net():
    torch.manual_seed(0)
    first = [nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU()]
    return trained(nn.Sequential(*first, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)))


class Sized(Classifier):
    """A training set of a given size, in batches of a given size."""

    def __init__(self, net, size, batch_size):
        super().__init__(net)
        self.size, self.batch_size = size, batch_size

    def train_dataloader(self):
        data = Vectors(self.size)
        if torch.distributed.is_initialized():  # in order, so that two processes see what one would
            return DataLoader(data, self.batch_size, sampler=DistributedSampler(data, shuffle=False))
        return DataLoader(data, self.batch_size)


class ManualSized(Sized):
    """The same under manual optimization."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class FailsInTheTrial(Sized):
    """On one process, and not in the training itself."""

    def training_step(self, batch, batch_idx):
        if isinstance(vars(self)["_trainer"], Trainer) or torch.distributed.get_rank() == 0:
            return super().training_step(batch, batch_idx)
        raise RuntimeError("out of memory")


class CountBytes(Callback):
    """A user's own communication hook, registered as PyTorch's documentation shows."""

    def __init__(self):
        self.steps = [0]

    def on_train_start(self, trainer, pl_module):
        trainer.strategy.model.register_comm_hook(None, self.hook)

    def hook(self, state, bucket):
        self.steps[-1] += bucket.buffer().nbytes
        return allreduce_hook(torch.distributed.group.WORLD, bucket)

    def on_train_batch_end(self, *_):
        self.steps.append(0)


class Kill(Callback):
    """The machine loses power before a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


VERDICTS = {"stays": ANYWAY, "adopted": NEVER, "own": {}}


def freezing(settings):
    """The callback of a case: the attention predictor, the start stage alone, a trial, a plan, or a script."""
    if "attention" in settings:
        return AttentionFreezeCallback(**settings["attention"])
    if "start" in settings:
        return SmartFreezeCallback(StartStage(**settings["start"]), verify=False, later=False)
    if "plan" in settings:
        return PlanCallback(StartStage(Safe(), probe_steps=4))
    if "trial" in settings:
        schedule = LONG if settings.get("long") else SHORT
        odds = Safe((0.6, 3.0), (1.1, 1.5))
        # After two fifths of a long run the first layer stays frozen, the second one trains again.
        stage = LaterStage(Safe((0.6, 3.0), (1.1, 1.0)), schedule=LONG) if settings.get("long") else False
        stage = IntervalStage(settings["save"]) if "save" in settings else stage
        how = {"verdict": VERDICTS[settings["trial"]], "schedule": schedule, "probe": settings.get("probe")}
        return smart(odds, later=stage, **how)
    freeze, thaw = ({int(step): layers for step, layers in settings.get(key, {}).items()} for key in ("script", "thaw"))
    return ScriptedFreeze(freeze, thaw)


def fit(settings, folder):
    kind = ManualSized if settings.get("manual") else FailsInTheTrial if settings.get("fails") else Sized
    model = kind(plain_net().double(), settings.get("size", 64), 8)
    freezer = freezing(settings)
    count = CountBytes()
    callbacks = [freezer, count]
    if "kill" in settings:
        saved = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        callbacks += [Kill(settings["kill"]), saved]
    trainer = Trainer(
        callbacks=callbacks,
        strategy=DDPStrategy(process_group_backend="gloo", **settings.get("ddp", {})),
        accelerator="cpu",
        devices=2,
        precision="64-true",
        use_distributed_sampler=False,
        logger=CSVLogger(folder) if "plan" in settings else False,
        enable_checkpointing="kill" in settings,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": 3, **settings.get("trainer", {})},
    )
    trainer.fit(model, ckpt_path=settings.get("resume"))
    return {
        "weights": model.state_dict(),
        "frozen": freezer.frozen,
        "events": [(event.layer, event.kind, event.step) for event in freezer.timeline.events],
        "confidences": [event.confidence for event in freezer.timeline.events],
        "losses": model.losses,
        "checkpoint": os.path.join(folder, "epoch=0.ckpt"),  # noqa: PTH118
        "bytes": count.steps,
        "notes": notes(freezer),
        "pictures": [path.name for path in folder.rglob("freeze_plan*")],
    }


if __name__ == "__main__":
    run_cases(fit)
