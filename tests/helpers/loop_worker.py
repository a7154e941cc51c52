"""Run by torchrun in the tests: training loops of one's own under DDP, by hand and by Fabric."""

import torch
from ddp_worker import plain_net
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from models import Vectors, Within, sgd
from scripted import ScriptedFreeze
from staging import Safe, notes
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from two_processes import run_cases

from smartfrz_lightning import Freezer, SmartFreezeCallback
from smartfrz_lightning.engine import FreezingMethod
from smartfrz_lightning.stages import LaterStage

EPOCHS = 3


class Lost(FreezingMethod):
    """Names a layer that there is not."""

    def select(self, run):
        return ["net.99"]


def train(model, optimizer, loader, settings, backward):
    """One loop for all: alone, under DDP and under Fabric."""
    freeze, thaw = ({int(step): layers for step, layers in settings.get(key, {}).items()} for key in ("script", "thaw"))
    method = ScriptedFreeze(freeze, thaw)
    if "later" in settings:
        method = SmartFreezeCallback(start=False, verify=False, later=LaterStage(Safe()))
    elif "lost" in settings:
        method = Lost(every_n_train_steps=2)
    freezer = Freezer(model, optimizer, method, len(loader), EPOCHS * len(loader), training_step=model)
    losses = []
    for _ in range(EPOCHS):
        for x, y in loader:
            with freezer.batch((x, y)):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x.double()), y)
                if "later" in settings:
                    freezer.before_backward(loss)
                backward(loss)
                optimizer.step()
            losses.append(loss.item())
        freezer.end_epoch()
    freezer.end()
    return freezer, losses


def fit(settings, folder):
    data, net = Vectors(64), Within(plain_net()).double()
    bytes_of_steps, calls = [0], []

    def count(state, bucket):
        bytes_of_steps[-1] += bucket.buffer().nbytes
        return allreduce_hook(torch.distributed.group.WORLD, bucket)

    if settings["by"] == "hand":
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        model = DistributedDataParallel(net, gradient_as_bucket_view=settings.get("view", False))
        model.register_comm_hook(None, count)
        model.register_forward_pre_hook(lambda *_: calls.append(1) or bytes_of_steps.append(0))
        loader = DataLoader(data, 8, sampler=DistributedSampler(data, shuffle=False))
        try:
            freezer, losses = train(model, sgd(net.parameters()), loader, settings, lambda loss: loss.backward())
        except ValueError as error:
            return {"error": str(error)}
    else:
        fabric = Fabric(accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"))
        fabric.launch()
        model, optimizer = fabric.setup(net, sgd(net.parameters()))
        loader = DataLoader(data, 8, sampler=DistributedSampler(data, shuffle=False))
        freezer, losses = train(model, optimizer, loader, settings, fabric.backward)
    return {
        "weights": net.state_dict(),
        "losses": losses,
        "events": [(event.layer, event.kind, event.step) for event in freezer.timeline.events],
        "bytes": bytes_of_steps[1:],
        "calls": len(calls),
        "notes": notes(freezer),
        "cannot_verify": freezer.run.cannot_verify,
    }


if __name__ == "__main__":
    run_cases(fit)
