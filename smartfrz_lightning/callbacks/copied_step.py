"""A training step of a copied LightningModule, as the Trainer would take it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, distributed
from torch.optim import Optimizer

from smartfrz_lightning.private.pytorch import is_compiled
from smartfrz_lightning.private.trainer import drawing_again

_OWN = ("backward", "optimizer_step", "optimizer_zero_grad", "on_before_zero_grad", "on_before_backward")


def why_not(trainer: Trainer, module: LightningModule) -> str:
    """Why a copy of a module cannot be trained beside it; empty if it can.

    Example:
        >>> from lightning import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.copied_step import why_not
        >>> trainer, model = Trainer(accelerator="cpu", barebones=True), BoringModel()
        >>> why_not(trainer, model)
        ''
        >>> model.automatic_optimization = False
        >>> why_not(trainer, model)
        'its training_step steps the optimizers itself'
    """
    if not module.automatic_optimization:
        return "its training_step steps the optimizers itself"
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        return "its training_step takes batches from the loader itself"
    if module.device.type not in ("cpu", "cuda"):
        return f"its device is {module.device.type}"
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
        return f"strategy={type(trainer.strategy).__name__}"
    if any(map(is_compiled, module.modules())):
        return "it is compiled"
    if own := [name for name in _OWN if is_overridden(name, module)]:
        return f"it has {' and '.join(own)} of its own"
    return ""


def has_room(module: LightningModule, optimizer: Optimizer, full_step: float) -> bool:
    """Whether a copy of a module fits beside it on its GPU, for a step in which everything trains; on a CPU it does.

    Args:
        module: The module.
        optimizer: It is copied too.
        full_step: Bytes that are allocated on the device in a step in which everything trains.

    Example:
        >>> import torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.copied_step import has_room
        >>> model = BoringModel()
        >>> has_room(model, torch.optim.SGD(model.parameters(), 0.1), full_step=0)
        True
    """
    if module.device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(module.device)
    used = torch.cuda.memory_allocated(module.device)
    free += torch.cuda.memory_reserved(module.device) - used
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    weights = list(module.parameters())
    states = states or 4 * weights  # nothing has stepped yet: two for each weight, in the copy and in the module
    copied = sum(tensor.nbytes for tensor in (*weights, *weights, *module.buffers(), *states))  # with their gradients
    return 1.1 * (copied + max(0.0, full_step - used)) < free


def prepare(trainer: Trainer, copied: LightningModule, optimizer: Optimizer) -> None:
    """The copy belongs to the Trainer, but logs nothing, and moves no schedule.

    Args:
        trainer: Trains the module.
        copied: A copy of it.
        optimizer: That of the copy.

    Example:
        >>> import torch
        >>> from lightning import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.copied_step import prepare
        >>> copied = BoringModel()
        >>> prepare(Trainer(accelerator="cpu", barebones=True), copied, torch.optim.SGD(copied.parameters(), 0.1))
        >>> copied.log("loss", 1.0)
    """
    schedulers = copied.lr_schedulers

    def idle() -> Any:
        found = schedulers()
        return [_Idle(one) for one in found] if isinstance(found, list) else found and _Idle(found)

    copied.trainer = trainer
    vars(copied).update(log=_silent, log_dict=_silent, lr_schedulers=idle, optimizers=lambda *_, **__: optimizer)


def _silent(*args: Any, **kwargs: Any) -> None: ...


class _Idle:
    """A scheduler that can be asked, but not moved."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def step(self, *args: Any, **kwargs: Any) -> None: ...


@contextmanager
def _apart(module: LightningModule) -> Iterator[None]:
    """Whatever reaches the module in here, as through a function that it holds, is undone and an error."""
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
        if any(parameter.grad is not None for parameter, _ in before):
            raise RuntimeError("it holds a function that computes with its own weights, in its copy too")
    finally:
        for parameter, grad in before:
            parameter.grad = grad


def forward_and_backward(
    trainer: Trainer,
    module: LightningModule,
    copied: LightningModule,
    batch: Any,
    batch_idx: int,
    drawn: tuple[dict[str, Any], Tensor | None],
    scaler: Any = None,
) -> dict[str, Any]:
    """What a training step of the copy gives, with its loss, if any; its gradients are added to those of the copy.

    Args:
        trainer: Trains the module.
        module: The module.
        copied: A copy of it.
        batch: On the module's device.
        batch_idx: Its number.
        drawn: :func:`~smartfrz_lightning.private.trainer.random_states` before the module's own step.
        scaler: Of the copy's gradients under mixed precision.

    Raises:
        RuntimeError: What the copy computes with are the module's weights.

    Example:
        >>> import copy
        >>> import torch
        >>> from lightning import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.copied_step import forward_and_backward, prepare
        >>> from smartfrz_lightning.private.trainer import random_states
        >>> trainer, module = Trainer(accelerator="cpu", barebones=True), BoringModel()
        >>> copied = copy.deepcopy(module)
        >>> prepare(trainer, copied, torch.optim.SGD(copied.parameters(), 0.1))
        >>> drawn = random_states(module.device)
        >>> outputs = forward_and_backward(trainer, module, copied, torch.rand(2, 32), 0, drawn)
        >>> outputs["loss"].shape, copied.layer.weight.grad.shape, module.layer.weight.grad
        (torch.Size([]), torch.Size([2, 32]), None)
    """
    numbered = is_param_in_hook_signature(copied.training_step, "batch_idx", min_args=2)
    with drawing_again(copied.device, drawn), torch.enable_grad(), _apart(module):
        copied.on_train_batch_start(batch, batch_idx)
        with trainer.precision_plugin.train_step_context():
            out = copied.training_step(batch, *[batch_idx] * numbered)
        loss = loss_of(out)
        if loss is None:
            return {}
        loss = loss / trainer.accumulate_grad_batches
        (loss if scaler is None else scaler.scale(loss)).backward()
        copied.on_after_backward()
    return {**(out if isinstance(out, Mapping) else {}), "loss": loss.detach()}


def end_batch(copied: LightningModule, outputs: Mapping[str, Any], batch: Any, batch_idx: int) -> None:
    """What the module does after a batch, as moving an average of its weights, its copy does too.

    Args:
        copied: A copy of the module.
        outputs: Of :func:`forward_and_backward`.
        batch: The batch.
        batch_idx: Its number.

    Example:
        >>> import torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.copied_step import end_batch
        >>> end_batch(BoringModel(), {}, torch.rand(2, 32), 0)
    """
    with drawing_again(copied.device):
        copied.on_train_batch_end(outputs, batch, batch_idx)


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a ``training_step`` returned.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.callbacks.copied_step import loss_of
        >>> loss_of({"loss": torch.tensor(2.0)}), loss_of(None)
        (tensor(2.), None)
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return loss if isinstance(loss, Tensor) else None


def average_gradients(trainer: Trainer, optimizer: Optimizer) -> None:
    """Over the processes of a Trainer, as DDP does. All of them call it.

    Args:
        trainer: Trains the module.
        optimizer: About to step a copy of it.

    Example:
        >>> import torch
        >>> from lightning import Trainer
        >>> from smartfrz_lightning.callbacks.copied_step import average_gradients
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> average_gradients(Trainer(accelerator="cpu", barebones=True), torch.optim.SGD([weight], 0.1))
    """
    if isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1:
        _average([parameter for group in optimizer.param_groups for parameter in group["params"]])


def step(trainer: Trainer, copied: LightningModule, optimizer: Optimizer, scaler: Any = None) -> None:
    """Step a copy, its gradients unscaled and clipped as those of the module.

    Args:
        trainer: Trains the module.
        copied: A copy of it.
        optimizer: That of the copy.
        scaler: Of the copy's gradients under mixed precision.

    Example:
        >>> import torch
        >>> from lightning import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.copied_step import prepare, step
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, gradient_clip_val=0.5)
        >>> copied = BoringModel()
        >>> optimizer, before = torch.optim.SGD(copied.parameters(), 1.0), copied.layer.weight.clone()
        >>> prepare(trainer, copied, optimizer)
        >>> copied.layer(torch.rand(8, 32)).sum().backward()
        >>> copied.layer.bias.grad = None
        >>> step(trainer, copied, optimizer)
        >>> round(float((copied.layer.weight - before).detach().norm()), 3)
        0.5
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    copied.on_before_optimizer_step(optimizer)
    copied.configure_gradient_clipping(
        optimizer,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
    )
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()


def _average(parameters: list[Tensor]) -> None:
    """As DDP does; what no process used keeps no gradient."""
    training = [parameter for parameter in parameters if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in training], device=training[0].device).int()
    distributed.all_reduce(used)
    for parameter, count in zip(training, used.tolist(), strict=True):
        if count:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()
