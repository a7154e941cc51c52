"""ForwardFlops: what the forward pass of a model costs, by weight."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from smartfrz_lightning.private.pytorch import HigherOrderOperator, TorchDispatchMode, in_backward, place_of, tensors_in

aten = torch.ops.aten


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # noqa: SLF001  # not in the registry
    **flop_registry,
}

_RECURRENT = {aten.mkldnn_rnn_layer, aten._cudnn_rnn}  # noqa: SLF001  # fused LSTM and RNN layers, neither


class _Origins:
    """From which parameter alone a tensor was made: itself, a view, a cast, with a mask, by a parametrization."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[Any, str] = {}
        self._kept: list[Tensor] = []  # so that no other takes their place
        for tensor in model.buffers():
            self.add("", tensor)
        for name, parameter in model.named_parameters():
            self.add(name, parameter)

    def add(self, name: str, tensor: Tensor) -> None:
        self._names.setdefault(place_of(tensor), name)  # a tied parameter goes by its first name
        self._kept.append(tensor)

    def follow(self, inputs: list[Tensor], out: Any) -> None:
        """An operation has run: what it makes of parameters and buffers alone stands for the last parameter."""
        if inputs and all(place_of(tensor) in self._names for tensor in inputs):
            name = self.weight(inputs)
            for tensor in tensors_in(out):
                self.add(name, tensor)

    def weight(self, inputs: list[Tensor]) -> str:
        """The parameter among the inputs of a product, the last one if there are several; empty if none is."""
        matrices = [name for tensor in inputs if tensor.ndim > 1 and (name := self._names.get(place_of(tensor)))]
        return matrices[-1] if matrices else ""


class _Counter(TorchDispatchMode):
    """PyTorch's ``FlopCounterMode`` by weights in place of modules; its tracker of these fails on some operators."""

    supports_higher_order_operators = True

    def __init__(self, origins: _Origins, products: list[tuple[str, float]]) -> None:
        super().__init__()
        self._origins, self._products = origins, products

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            _warn_of_uncounted(func)
            return func(*args, **kwargs)
        if func.overloadpacket not in _FORMULAS and torch.is_inference_mode_enabled():
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if not in_backward():
            inputs = tensors_in((args, kwargs))
            self._products += self._counted(func.overloadpacket, inputs, args, {**kwargs, "out_val": out})
            self._origins.follow(inputs, out)
        return out

    def _counted(self, kind: Any, inputs: list[Tensor], args: tuple, kwargs: dict) -> Iterator[tuple[str, float]]:
        if kind in _RECURRENT:  # at every step of every sequence all weights are multiplied
            positions = inputs[0].numel() // inputs[0].shape[-1]
            for weight in inputs[1:]:
                if name := self._origins.weight([weight]):
                    yield name, 2 * positions * weight.numel()
        elif kind in _FORMULAS:
            yield self._origins.weight(inputs), int(_FORMULAS[kind](*args, **kwargs))


@functools.cache
def _warn_of_uncounted(func: Any) -> None:
    warnings.warn(f"{func} runs functions of its own, whose FLOPs are not counted", stacklevel=2)


class ForwardFlops:
    """Count the FLOPs of a forward pass with the formulas of PyTorch's ``FlopCounterMode``, by weight.

    Operations inside of compiled regions, and of higher-order operators such as ``torch.cond``, are not counted.

    Attributes:
        products: In the order of running, as ``(parameter, FLOPs)``; without a name where no parameter is multiplied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.products: list[tuple[str, float]] = []
        self._model = model
        self._modes = contextlib.ExitStack()

    @property
    def total(self) -> float:
        """FLOPs of the whole forward pass."""
        return sum(flops for _, flops in self.products)

    def start(self) -> None:
        """Begin, before the forward pass."""
        origins = _Origins(self._model)
        for name, module in self._model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                self._modes.callback(module.register_forward_pre_hook(_runs(origins, name)).remove)
        self._modes.enter_context(_Counter(origins, self.products))

    def stop(self) -> None:
        """End; does nothing if nothing is being counted."""
        self._modes.close()


def _runs(origins: _Origins, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, *_: Any) -> None:
        for own, parameter in module.named_parameters(prefix=name, recurse=False):
            origins.add(own, parameter)  # FSDP2, or functional_call, may have put another in its place

    return hook
