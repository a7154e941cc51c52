"""A second set of weights for a model, and training steps taken on them."""

import contextlib
import copy
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smartfrz_lightning.engine.attributes import Attributes, attributes, attributes_as
from smartfrz_lightning.freezing.freeze import with_nested
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.private.pytorch import drawing_from, random_states, register_gradient_hooks


def may_move(model: nn.Module, most: float, training: Collection[str] = ()) -> list[str]:
    """Names of parameters that may be averages of the weights, teachers or targets: all that have no gradients.

    None if they are more than ``most`` times as many as those that train, the ones named in ``training`` included:
    that is a backbone, which stands still, and of which copies would cost too much memory.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    still = [name for name, p in model.named_parameters() if not p.requires_grad and name not in training]
    size = sum(sizes[name] for name in still)
    return still if size <= most * (sum(sizes.values()) - size) else []


class ShadowWeights:
    """Parameters, buffers and an optimizer of their own, with a frozen prefix that trains.

    Only tensors are copied: parameters that train, those of the prefix, those that may move without gradients (see
    ``may_move``), and all buffers. Inside of ``swapped`` the model has them in place of its own.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, prefix: Sequence[Layer]) -> None:
        self._model = model
        released = {name for layer in prefix for name in layer.parameters}
        moving = set(may_move(model, 2, released))
        self._norms = [model.get_submodule(name) for layer in prefix for name in layer.stateful]
        self.tensors: dict[str, Tensor] = {}
        memo: dict[int, Any] = {}
        for name, parameter in model.named_parameters():
            trains = parameter.requires_grad or name in released
            memo[id(parameter)] = parameter
            if trains or name in moving:
                own = nn.Parameter(parameter.detach().clone(), requires_grad=trains)
                register_gradient_hooks(own, parameter)
                self.tensors[name] = memo[id(parameter)] = own
        self.tensors |= {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self._begun = {
            name: tensor.detach().clone() for name, tensor in self.tensors.items() if not tensor.requires_grad
        }
        self._memo = memo
        self._training = [parameter.requires_grad for parameter in model.parameters()]
        self.optimizer = _copy_optimizer(optimizer, memo)

    @property
    def size(self) -> int:
        """How many parameters train."""
        return sum(tensor.numel() for tensor in self.tensors.values() if tensor.requires_grad)

    def swapped(self, body: Callable[[], Any], begun: Attributes) -> Any:
        """Call a function while the model has the second set of weights, and plain attributes are as they were."""
        given = {f"module.{name}": tensor for name, tensor in self.tensors.items()}
        with attributes_as(begun, self._memo):
            for norm in self._norms:
                norm.training = self._model.training
            out = torch.func.functional_call(_Body(self._model), given, (body,))
        for name in self.tensors:  # a buffer may have been replaced
            self.tensors[name] = given[f"module.{name}"]
        return out

    def follow(self, settings: Sequence[Mapping[str, Any]]) -> bool:
        """Take the settings of the optimizer's own groups for the next step; returns whether the groups still match."""
        groups = self.optimizer.param_groups
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in settings]:
            return False
        if [parameter.requires_grad for parameter in self._model.parameters()] != self._training:
            return False
        for group, own in zip(groups, settings, strict=True):
            group.update({name: value for name, value in own.items() if name != "params"})
        return True

    @torch.no_grad()
    def adopt(self, optimizer: Optimizer) -> None:
        """Give the model and its optimizer these weights and states; the prefix trains by now.

        What has not moved without gradients here is left alone: other hooks may have moved it in the model since.
        """
        parameters, buffers = dict(self._model.named_parameters()), dict(self._model.named_buffers())
        for name, own in self.tensors.items():
            tensor = parameters.get(name, buffers.get(name))
            same = name in self._begun and own.equal(self._begun[name])
            if tensor is not None and own.shape == tensor.shape and not same:
                tensor.copy_(own)
        for mine, theirs in zip(with_nested([self.optimizer]), with_nested([optimizer]), strict=True):
            states = {id(parameter): state for parameter, state in mine.state.items()}
            for parameter in parameters.values():
                theirs.state.pop(parameter, None)
                if state := states.get(id(self._memo.get(id(parameter)))):
                    theirs.state[parameter] = state


class _Body(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, body: Callable[[], Any]) -> Any:
        return body()


def _copy_optimizer(optimizer: Optimizer, memo: dict[int, Any]) -> Any:
    """An optimizer of other parameters in the same state, with the attributes that ``deepcopy`` of one leaves out."""
    made = object.__new__(type(optimizer))
    memo[id(optimizer)] = made
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer) and id(value) not in memo:
            _copy_optimizer(value, memo)
    for name, value in vars(optimizer).items():
        if "hooks" in name:
            vars(made)[name] = type(value)()
        elif not (callable(value) and hasattr(type(optimizer), name)):  # a scheduler wraps step() of the original
            vars(made)[name] = copy.deepcopy(value, memo)
    return made


class ShadowStep(ABC):
    """How a loop takes a training step on a second set of weights, in the batch that the model has just seen.

    While it is armed, the batch, the random state and plain attributes are taken down when the loop's ``training_step``
    begins.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.loss: Tensor | None = None
        """Of the model's own step in this batch."""
        self.repeated = False
        """Whether a batch was repeated; what books it takes that back."""
        self._call: tuple[tuple, dict[str, Any]] | None = None
        self._drawn: Any = None
        self._begun: Attributes = []
        self._why = ""

    @abstractmethod
    def arm(self, most: float) -> None:
        """Take batches down from now on, with so many parameters of modules that are no submodules at most."""

    def disarm(self) -> None:
        """Take no more down, and forget what was."""
        self._call, self.loss, self._begun, self._why = None, None, [], ""

    @abstractmethod
    def take(self, shadow: ShadowWeights, stepped: bool, last: Callable[[], bool]) -> Tensor | None:
        """Repeat this batch on other weights, and step their optimizer if the model's own stepped; returns the loss.

        ``last`` tells then whether it was the last batch. Whatever the user's code raises, the model is as it was.
        """

    def all_well(self, well: bool) -> bool:
        """Whether it went well on every process; each calls it."""
        return well

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more fit onto the device."""
        return True

    def others(self) -> list[Any]:
        """What a step may change besides the model's modules."""
        return []

    @property
    def called(self) -> bool:
        """Whether ``training_step`` was called in this batch."""
        return self._call is not None or bool(self._why)

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return next(self._model.parameters()).device

    def watching(self, training_step: Callable[..., Any], most: float) -> Callable[..., Any]:
        """``training_step``, taking down what it is called with."""

        @functools.wraps(training_step)
        def step(*args: Any, **kwargs: Any) -> Any:
            self.loss, self._why = None, ""
            try:
                self._drawn = random_states(self.device)
                own = {id(parameter): parameter for parameter in self._model.parameters()}
                self._begun = attributes([*self._model.modules(), *self.others()], own, most)
                self._call = copy.deepcopy((args, kwargs))
            except Exception as error:  # whatever a batch is made of
                self._call = None
                self._why = f"its batch or the module's attributes cannot be copied ({error!r})"
            out = training_step(*args, **kwargs)
            self.loss = loss_of(out)
            return out

        return step

    @contextlib.contextmanager
    def _repeated(self) -> Iterator[tuple[tuple, dict[str, Any]]]:
        """The call that was taken down, with what is drawn at random in it; the model's own gradients stay."""
        if self._call is None:
            raise RuntimeError(self._why or "its training_step was not called in this batch")
        call, self._call, self.repeated = self._call, None, True
        before = [(parameter, parameter.grad) for parameter in self._model.parameters()]
        for parameter, _ in before:
            parameter.grad = None
        try:
            with drawing_from(self._drawn, self.device), torch.enable_grad():
                yield call
            if any(parameter.grad is not None for parameter, _ in before):
                raise RuntimeError("it holds a function that computes with the model's own weights")
        finally:
            for parameter, grad in before:
                parameter.grad = grad


class LoopStep(ShadowStep):
    """Of a training loop of your own, which calls this ``training_step`` in place of the one that was given."""

    def __init__(self, model: nn.Module, training_step: Callable[..., Any], backward: Callable[[Tensor], Any]) -> None:
        super().__init__(model)
        self._plain = self.training_step = training_step
        self._backward = backward

    def arm(self, most: float) -> None:
        self.training_step = self.watching(self._plain, most)

    def disarm(self) -> None:
        super().disarm()
        self.training_step = self._plain

    def take(self, shadow: ShadowWeights, stepped: bool, last: Callable[[], bool]) -> Tensor | None:
        with self._repeated() as (args, kwargs):

            def body() -> Tensor | None:
                loss = loss_of(self._plain(*args, **kwargs))
                if loss is not None:
                    self._backward(loss)
                if stepped:
                    shadow.optimizer.step()
                    shadow.optimizer.zero_grad()
                return loss

            return shadow.swapped(body, self._begun)


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a ``training_step`` returned."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return loss if isinstance(loss, Tensor) else None


def cannot_repeat(model: nn.Module, optimizer: Optimizer) -> str:
    """Why steps of an optimizer cannot be taken on other weights; empty if they can."""
    own = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"]):
        return "the optimizer trains parameters that the model does not have"
    try:
        inspect.signature(type(optimizer).step).bind(optimizer)  # a scheduler wraps that of the object
    except TypeError:
        return "the optimizer's step() needs a closure"
    except ValueError:
        pass  # not written in Python
    return ""


def scales_gradients(optimizer: Any) -> bool:
    """Whether this is an optimizer of a Fabric with a ``GradScaler``."""
    precision = getattr(getattr(optimizer, "_strategy", None), "precision", None)
    return getattr(precision, "scaler", None) is not None
