"""A training step of a copied LightningModule, as the Trainer would take it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, distributed
from torch.optim import Optimizer

from smartfrz_lightning.private.pytorch import is_compiled


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
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
        return f"strategy={type(trainer.strategy).__name__}"
    if any(map(is_compiled, module.modules())):
        return "it is compiled"
    if is_overridden("optimizer_zero_grad", module) or is_overridden("backward", module):
        return "it has an optimizer_zero_grad or backward of its own"
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
    copied = sum(tensor.nbytes for tensor in (*weights, *weights, *module.buffers(), *states))  # with their gradients
    return 1.1 * (copied + max(0.0, full_step - used)) < free


def random_state(module: LightningModule) -> list[Tensor]:
    """What PyTorch draws next, on the CPU and on the module's GPU.

    Example:
        >>> import torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.copied_step import random_state
        >>> random_state(BoringModel())[0].equal(torch.get_rng_state())
        True
    """
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(module.device)] if module.device.type == "cuda" else state


@contextmanager
def _drawing_again(module: LightningModule, state: Sequence[Tensor]) -> Iterator[None]:
    """What is drawn at random in here is what the module itself drew in this batch, and moves nothing outside."""
    with isolate_rng(include_cuda=module.device.type == "cuda"):
        torch.set_rng_state(state[0])
        if len(state) > 1:
            torch.cuda.set_rng_state(state[1], module.device)
        yield


def prepare(trainer: Trainer, copied: LightningModule) -> None:
    """The copy belongs to the Trainer, but logs nothing.

    Example:
        >>> from lightning import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.copied_step import prepare
        >>> copied = BoringModel()
        >>> prepare(Trainer(accelerator="cpu", barebones=True), copied)
        >>> copied.log("loss", 1.0)
    """
    copied.trainer = trainer
    for name in ("log", "log_dict"):
        vars(copied)[name] = _silent


def _silent(*args: Any, **kwargs: Any) -> None: ...


def forward_and_backward(
    trainer: Trainer, copied: LightningModule, batch: Any, batch_idx: int, drawn: Sequence[Tensor], scaler: Any = None
) -> dict[str, Any]:
    """What a training step of the copy gives, with its loss, if any; its gradients are added to those of the copy.

    Args:
        trainer: Trains the module.
        copied: A copy of it.
        batch: On the module's device.
        batch_idx: Its number.
        drawn: :func:`random_state` before the module's own step.
        scaler: Of the copy's gradients under mixed precision.

    Example:
        >>> import torch
        >>> from lightning import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.copied_step import forward_and_backward, prepare, random_state
        >>> trainer, copied = Trainer(accelerator="cpu", barebones=True), BoringModel()
        >>> prepare(trainer, copied)
        >>> outputs = forward_and_backward(trainer, copied, torch.rand(2, 32), 0, random_state(copied))
        >>> outputs["loss"].shape, copied.layer.weight.grad.shape
        (torch.Size([]), torch.Size([2, 32]))
    """
    numbered = is_param_in_hook_signature(copied.training_step, "batch_idx", min_args=2)
    with _drawing_again(copied, drawn), torch.enable_grad():
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
    with isolate_rng(include_cuda=copied.device.type == "cuda"):
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


def finish_gradients(trainer: Trainer, copied: LightningModule, optimizer: Optimizer, scaler: Any = None) -> None:
    """Average the gradients over processes, unscale and clip them.

    Args:
        trainer: Trains the module.
        copied: A copy of it.
        optimizer: About to step the copy.
        scaler: Of the copy's gradients under mixed precision.

    Example:
        >>> import torch
        >>> from lightning import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.copied_step import finish_gradients, prepare
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, gradient_clip_val=0.5)
        >>> copied = BoringModel()
        >>> prepare(trainer, copied)
        >>> copied(torch.rand(8, 32)).sum().backward()
        >>> finish_gradients(trainer, copied, torch.optim.SGD(copied.parameters(), 0.1))
        >>> round(float(torch.nn.utils.get_total_norm(p.grad for p in copied.parameters())), 3)
        0.5
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1:
        _average(parameters)
    if scaler is not None:
        scaler.unscale_(optimizer)
    copied.on_before_optimizer_step(optimizer)
    copied.configure_gradient_clipping(
        optimizer,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
    )


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
