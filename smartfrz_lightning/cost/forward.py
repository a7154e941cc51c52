"""ForwardFlops: the products in the forward pass of a model, and what their operands depend on."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from smartfrz_lightning.cost.operands import Operand, Operands, Product, all_of
from smartfrz_lightning.private.pytorch import HigherOrderOperator, TorchDispatchMode, in_backward, tensors_in

aten = torch.ops.aten


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # noqa: SLF001  # not in the registry
    **flop_registry,
}

_RECURRENT = {aten.mkldnn_rnn_layer, aten._cudnn_rnn}  # noqa: SLF001  # fused LSTM and RNN layers, neither
_ADDING = {aten.addmm, aten.baddbmm}  # whose first argument is none of the factors


class _Counter(TorchDispatchMode):
    """As PyTorch's ``FlopCounterMode``, with operands in place of modules."""

    supports_higher_order_operators = True

    def __init__(self, operands: Operands, products: list[Product]) -> None:
        super().__init__()
        self._operands, self._products = operands, products

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        higher = isinstance(func, HigherOrderOperator)
        if higher:
            _warn_of_uncounted(func)
        elif func.overloadpacket not in _FORMULAS and torch.is_inference_mode_enabled():
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if in_backward():
            return func(*args, **kwargs)
        inputs = tensors_in((args, kwargs))
        operands = self._operands.of(inputs)
        out = func(*args, **kwargs)
        if not higher:
            found = _products(func.overloadpacket, inputs, operands, args, {**kwargs, "out_val": out})
            self._operands.multiplied(found)
            self._products += found
        self._operands.follow(operands, out)
        return out


def _products(
    kind: Any, inputs: list[Tensor], operands: list[Operand], args: tuple, kwargs: dict[str, Any]
) -> list[Product]:
    if kind in _RECURRENT:
        count = 1 + (len(args[1]) if kind is aten._cudnn_rnn else 2)  # noqa: SLF001
        return _recurrent(inputs[:count], operands[:count])
    if kind not in _FORMULAS:
        return []
    flops = float(_FORMULAS[kind](*args, **kwargs))
    if "attention" in str(kind):  # two products in one, which gives the gradients of all or of none
        return [(flops, 2 * [(all_of(operands[:3]), False)])]
    return [(flops, operands[1:3] if kind in _ADDING else operands[:2])]


def _recurrent(inputs: list[Tensor], operands: list[Operand]) -> list[Product]:
    """At every step of every sequence all weights are multiplied, the first with inputs, others with states."""
    products, states = [], operands[0][0]
    for tensor, (bits, _) in zip(inputs[1:], operands[1:], strict=True):
        if tensor.ndim == 2:  # no bias
            positions = inputs[0].numel() // inputs[0].shape[-1]
            products.append((2.0 * positions * tensor.numel(), [(states, False), (bits, True)]))
            states |= bits
    return products


@functools.cache
def _warn_of_uncounted(func: Any) -> None:
    warnings.warn(f"{func} runs functions of its own, whose FLOPs are not counted", stacklevel=2)


class ForwardFlops:
    """Count the FLOPs of a forward pass with the formulas of PyTorch's ``FlopCounterMode``.

    Operations inside of compiled regions, and of higher-order operators such as ``torch.cond``, are not counted.

    Attributes:
        parameters: Names of the parameters, in the order of the operands' bits.
        products: In the order of running.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [name for name, _ in model.named_parameters()]
        self.products: list[Product] = []
        self._model = model
        self._modes = contextlib.ExitStack()

    def start(self) -> None:
        """Begin, before the forward pass."""
        operands = Operands(self._model)
        for name, module in self._model.named_modules():
            own = any(True for _ in module.parameters(recurse=False))
            if own and not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                self._modes.callback(module.register_forward_pre_hook(_runs(operands, name)).remove)
        self._modes.enter_context(_Counter(operands, self.products))

    def stop(self) -> None:
        """End; does nothing if nothing is being counted."""
        self._modes.close()


def _runs(operands: Operands, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, *_: Any) -> None:
        for own, parameter in module.named_parameters(prefix=name, recurse=False):
            operands.add_parameter(own, parameter)  # FSDP2, or functional_call, may have put another in its place

    return hook
