"""A second set of weights for a model, and training steps taken on them."""

import contextlib
import copy
import functools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.private.pytorch import drawing_from, random_states, register_gradient_hooks

_TORCH = set(vars(nn.Module())) - {"training"}


class ShadowWeights:
    """Parameters, buffers and an optimizer of their own, with a frozen prefix that trains.

    Only tensors are copied: parameters that train, those of the prefix, those that move without gradients (an average
    of the weights), and all buffers. Inside of ``swapped`` the model has them in place of its own.

    Args:
        model: The model, between two steps.
        optimizer: What steps it.
        prefix: Frozen layers; in the second set they train.
        moving: Names of parameters without gradients that move all the same.

    Raises:
        Exception: Whatever copying the optimizer's state raises.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, prefix: Sequence[Layer], moving: Collection[str] = ()
    ) -> None:
        self._model = model
        released = {name for layer in prefix for name in layer.parameters}
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
        self.optimizer = _copy_optimizer(optimizer, memo)

    def swapped(self, body: Callable[[], Any], *others: object) -> Any:
        """Call a function while the model has the second set of weights; plain attributes are put back afterwards.

        Args:
            body: What to call.
            others: Further objects whose plain attributes are put back.
        """
        given = {f"module.{name}": tensor for name, tensor in self.tensors.items()}
        with _attributes_put_back([*self._model.modules(), *others], self._memo):
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
        states = {id(parameter): state for parameter, state in self.optimizer.state.items()}
        for parameter in parameters.values():
            optimizer.state.pop(parameter, None)
            if state := states.get(id(self._memo.get(id(parameter)))):
                optimizer.state[parameter] = state


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


@contextlib.contextmanager
def _attributes_put_back(owners: Sequence[object], memo: Mapping[int, Any]) -> Iterator[None]:
    """Give objects copies of their lists, dicts, tensors and generators, and take these away again."""
    before = [(owner, {k: v for k, v in vars(owner).items() if k not in _TORCH}) for owner in owners]
    for owner, attributes in before:
        for name, value in attributes.items():
            own = _copied(value, memo)
            if own is not value:
                vars(owner)[name] = own
    try:
        yield
    finally:
        for owner, attributes in before:
            for name in [name for name in vars(owner) if name not in _TORCH and name not in attributes]:
                del vars(owner)[name]
            vars(owner).update(attributes)


def _copied(value: Any, memo: Mapping[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return memo.get(id(value), value if value.grad_fn is not None else value.detach().clone())
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, dict):
        made = copy.copy(value)
        made.update({key: _copied(entry, memo) for key, entry in value.items()})
        return made
    if type(value) in (list, set, deque, tuple):
        entries = [_copied(entry, memo) for entry in value]
        return deque(entries, value.maxlen) if isinstance(value, deque) else type(value)(entries)
    if isinstance(value, SimpleNamespace) or (is_dataclass(value) and not isinstance(value, type)):
        made = copy.copy(value)
        vars(made).update({key: _copied(entry, memo) for key, entry in vars(value).items()})
        return made
    return value


class ShadowStep(ABC):
    """How a loop takes a training step on a second set of weights, in the batch that the model has just seen.

    While it is armed, the batch and the random state are taken down when the loop's ``training_step`` begins.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        """Of the model's own step in this batch."""
        self.repeated = False
        """Whether a batch was repeated; what books it takes that back."""
        self._call: tuple[tuple, dict[str, Any]] | None = None
        self._drawn: Any = None
        self._why = ""

    @abstractmethod
    def arm(self) -> None:
        """Take batches down from now on."""

    @abstractmethod
    def disarm(self) -> None:
        """Take no more down, and forget what was."""

    @abstractmethod
    def take(self, shadow: ShadowWeights, stepped: bool, last: Callable[[], bool]) -> Tensor | None:
        """Repeat this batch on other weights, and step their optimizer if the model's own stepped; returns the loss.

        Args:
            shadow: The weights.
            stepped: Whether an optimizer stepped in this batch.
            last: Tells after the optimizer's step whether this was the last batch.

        Raises:
            Exception: Whatever the user's code raises; the model is as it was.
        """

    def all_well(self, well: bool) -> bool:
        """Whether it went well on every process; each calls it."""
        return well

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more fit onto the device."""
        return True

    def reduce(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        return values

    def watching(self, training_step: Callable[..., Any], device: Callable[[], torch.device]) -> Callable[..., Any]:
        """``training_step``, taking down what it is called with."""

        @functools.wraps(training_step)
        def step(*args: Any, **kwargs: Any) -> Any:
            self.loss, self._why = None, ""
            try:
                self._drawn = random_states(device())
                self._call = copy.deepcopy((args, kwargs))
            except Exception as error:  # whatever a batch is made of
                self._call, self._why = None, f"its batch cannot be copied ({type(error).__name__}: {error})"
            out = training_step(*args, **kwargs)
            self.loss = loss_of(out)
            return out

        return step

    @contextlib.contextmanager
    def _repeated(self, model: nn.Module, device: torch.device) -> Iterator[tuple[tuple, dict[str, Any]]]:
        """The call that was taken down, with what is drawn at random in it; the model's own gradients stay as they are.

        Raises:
            RuntimeError: Something in here computes with the model's own weights.
        """
        if self._call is None:
            raise RuntimeError(self._why or "its training_step was not called in this batch")
        call, self._call, self.repeated = self._call, None, True
        before = [(parameter, parameter.grad) for parameter in model.parameters()]
        for parameter, _ in before:
            parameter.grad = None
        try:
            with drawing_from(self._drawn, device), torch.enable_grad():
                yield call
            if any(parameter.grad is not None for parameter, _ in before):
                raise RuntimeError("it holds a function that computes with the model's own weights")
        finally:
            for parameter, grad in before:
                parameter.grad = grad


class LoopStep(ShadowStep):
    """Of a training loop of your own.

    Args:
        model: The model.
        training_step: Gives the loss of a batch; the loop calls ``training_step`` instead.
    """

    def __init__(self, model: nn.Module, training_step: Callable[..., Any]) -> None:
        super().__init__()
        self._model, self._plain = model, training_step
        self.training_step = training_step

    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def arm(self) -> None:
        self.training_step = self.watching(self._plain, self._device)

    def disarm(self) -> None:
        self.training_step, self._call, self.loss = self._plain, None, None

    def take(self, shadow: ShadowWeights, stepped: bool, last: Callable[[], bool]) -> Tensor | None:
        with self._repeated(self._model, self._device()) as (args, kwargs):

            def body() -> Tensor | None:
                loss = loss_of(self._plain(*args, **kwargs))
                if loss is not None:
                    loss.backward()
                if stepped:
                    shadow.optimizer.step()
                    shadow.optimizer.zero_grad()
                return loss

            return shadow.swapped(body)


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a ``training_step`` returned."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return loss if isinstance(loss, Tensor) else None
