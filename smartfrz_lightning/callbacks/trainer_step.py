"""TrainerStep: repeats a Trainer's training step on a second set of weights."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, distributed

from smartfrz_lightning.engine.shadow import ShadowStep, ShadowWeights, cannot_repeat, loss_of
from smartfrz_lightning.private.pytorch import is_compiled, steps_in_backward
from smartfrz_lightning.private.trainer import callbacks_of

_OWN = ("backward", "optimizer_step", "optimizer_zero_grad", "on_before_zero_grad", "on_before_backward")
_GRADIENT_HOOKS = ("on_after_backward", "on_before_optimizer_step")


def cannot_verify(trainer: Trainer, module: LightningModule) -> str:
    """Why a training step cannot be repeated on other weights; empty if it can."""
    if not module.automatic_optimization:
        return "training_step steps the optimizers itself"
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        return "training_step takes batches from the loader itself"
    if len(trainer.optimizers) != 1:
        return f"there are {len(trainer.optimizers)} optimizers"
    if module.device.type not in ("cpu", "cuda"):
        return f"the device is {module.device.type}"
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
        return f"strategy={type(trainer.strategy).__name__}"
    if why := cannot_repeat(module, trainer.optimizers[0]):
        return why
    if any(map(is_compiled, module.modules())):
        return "the model is compiled"
    if any(map(steps_in_backward, module.parameters())):
        return "hooks run as soon as a gradient is complete"
    if own := [name for name in _OWN if is_overridden(name, module)]:
        return f"{type(module).__name__} has its own {' and '.join(own)}"
    return ""


class TrainerStep(ShadowStep):
    """Of a Trainer, under automatic optimization."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        super().__init__(module)
        self._trainer, self._module = trainer, module
        self._scaler: Any = None

    def arm(self, most: float) -> None:
        self._scaler = copy.deepcopy(getattr(self._trainer.precision_plugin, "scaler", None))
        strategy = self._trainer.strategy  # not in the module, of which the user may make copies
        vars(strategy)["training_step"] = self.watching(strategy.training_step, most)

    def disarm(self) -> None:
        super().disarm()
        vars(self._trainer.strategy).pop("training_step", None)
        self._scaler = None

    def others(self) -> list[Callback]:
        return [callback for callback in callbacks_of(self._trainer) if _reads_gradients(callback)]

    def all_well(self, well: bool) -> bool:
        return self._trainer.strategy.reduce_boolean_decision(well, all=True)

    def has_room(self, size: int) -> bool:
        device = self._module.device
        if device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(device)
        used, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        return 1.1 * (size + most - used) < free + torch.cuda.memory_reserved(device) - used

    def take(self, shadow: ShadowWeights, stepped: bool, last: Callable[[], bool]) -> Tensor | None:
        trainer, module, optimizer = self._trainer, self._module, shadow.optimizer
        view = _TrainerView(trainer, optimizer, trainer.global_step - stepped)
        watching = self.others()
        with self._repeated() as (args, kwargs):

            def body() -> Tensor | None:
                vars(module).update(
                    _trainer=view, _current_fx_name="training_step", optimizers=lambda *_, **__: optimizer
                )
                error = None
                try:
                    out, loss, part = self._passes(view, watching, args, kwargs)
                except Exception as raised:  # whatever the user's code raises
                    error, out, loss, part = raised, None, None, None
                if not self.all_well(error is None):  # what comes next takes all processes
                    raise error or RuntimeError("it fails on another process")
                if stepped and not (self._scaler is not None and loss is None):
                    self._step(view, optimizer, watching)
                vars(view)["global_step"] = trainer.global_step
                if not last():  # that of the module itself is yet to come
                    outputs = {**(out if isinstance(out, Mapping) else {}), "loss": part} if part is not None else {}
                    outputs = {k: v.detach() if isinstance(v, Tensor) else v for k, v in outputs.items()}
                    module.on_train_batch_end(outputs, args[0], trainer.fit_loop.batch_idx)
                return loss

            return shadow.swapped(body, self._begun)

    def _passes(
        self, view: "_TrainerView", watching: list[Callback], args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        """The forward and the backward pass: what ``training_step`` gave, the loss, and its part of the gradient."""
        trainer, module = self._trainer, self._module
        with trainer.precision_plugin.train_step_context():
            out = module.training_step(*args, **kwargs)
        loss = loss_of(out)
        part = None if loss is None else loss / trainer.accumulate_grad_batches
        if part is not None:
            (part if self._scaler is None else self._scaler.scale(part)).backward()
            for callback in watching:
                callback.on_after_backward(view, module)  # pyright: ignore[reportArgumentType]
            module.on_after_backward()
        return out, loss, part

    def _step(self, view: "_TrainerView", optimizer: Any, watching: list[Callback]) -> None:
        trainer, module = self._trainer, self._module
        if isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1:
            _average([parameter for group in optimizer.param_groups for parameter in group["params"]])
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        for callback in watching:
            callback.on_before_optimizer_step(view, module, optimizer)  # pyright: ignore[reportArgumentType]
        module.on_before_optimizer_step(optimizer)
        module.configure_gradient_clipping(
            optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()
        optimizer.zero_grad()


def _reads_gradients(callback: Callback) -> bool:
    ours = type(callback).__module__.startswith(("smartfrz_lightning.", "lightning."))
    users = not ours or isinstance(callback, LambdaCallback)
    return users and any(is_overridden(name, callback) for name in _GRADIENT_HOOKS)


class _TrainerView:
    """A Trainer as the repeated step sees it: what it is told, logged or asked to do goes nowhere."""

    def __init__(self, trainer: Trainer, optimizer: Any, global_step: int) -> None:
        loggers = [DummyLogger() for _ in trainer.loggers]
        schedulers = [replace(config, scheduler=_Idle(config.scheduler)) for config in trainer.lr_scheduler_configs]
        own = {"_trainer": trainer, "optimizers": [optimizer], "lr_scheduler_configs": schedulers}
        own |= {"global_step": global_step, "logger": loggers[0] if loggers else None, "loggers": loggers}
        own |= {"_results": _Silent(), "_logger_connector": _Silent(), "save_checkpoint": lambda *_, **__: None}
        for name in ("callback_metrics", "progress_bar_metrics", "logged_metrics"):
            own[name] = dict(getattr(trainer, name))
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_trainer"], name)


class _Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: False


class _Idle:
    """A scheduler that can be asked, but not moved."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def step(self, *args: Any, **kwargs: Any) -> None: ...


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
