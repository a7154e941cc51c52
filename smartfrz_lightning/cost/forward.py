"""ForwardFlops: what the forward pass of a model costs, by module."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from smartfrz_lightning.private.pytorch import HigherOrderOperator, TorchDispatchMode, in_backward

aten = torch.ops.aten


def _recurrent(x: Tensor, *weights: Tensor) -> int:
    """Fused LSTM and RNN layers, which the table lacks: at every step of every sequence all weights are multiplied."""
    positions = x.numel() // x.shape[-1]
    return 2 * positions * sum(weight.numel() for weight in weights if weight.ndim == 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


_FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mkldnn_rnn_layer: lambda x, w1, w2, *args, **kw: _recurrent(x, w1, w2),
    aten._cudnn_rnn: lambda x, weights, *args, **kw: _recurrent(x, *weights),  # noqa: SLF001
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # noqa: SLF001  # not in the registry
    **flop_registry,
}


class _Counter(TorchDispatchMode):
    """PyTorch's ``FlopCounterMode`` without its module tracker; that one fails on some higher-order operators."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            _warn_of_uncounted(func)
            return func(*args, **kwargs)
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None and torch.is_inference_mode_enabled():
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None and not in_backward():
            self.total += int(formula(*args, **kwargs, out_val=out))
        return out


@functools.cache
def _warn_of_uncounted(func: Any) -> None:
    warnings.warn(f"{func} runs functions of its own, whose FLOPs are not counted", stacklevel=2)


class ForwardFlops:
    """Count the FLOPs of a forward pass with the formulas of PyTorch's ``FlopCounterMode``, by the module that runs.

    Only modules that own parameters are told apart. Operations inside of compiled regions, and of
    higher-order operators such as ``torch.cond``, are not counted.

    Attributes:
        segments: FLOPs in the order of running, as ``(module, FLOPs)``; the module is empty outside of them all.
        running: Whether a forward pass is being counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self.segments: list[tuple[str, float]] = []
        self.running = False
        self._model = model
        self._counter = _Counter()
        self._modes = contextlib.ExitStack()
        self._inside: list[str] = []
        self._counted = 0

    @property
    def total(self) -> float:
        """FLOPs of the whole forward pass."""
        return sum(flops for _, flops in self.segments)

    def start(self) -> None:
        """Begin, before the forward pass."""
        self._modes.enter_context(self._counter)
        for name, module in self._model.named_modules():
            scripted = isinstance(module, torch.jit.ScriptModule)  # takes no hooks
            if not scripted and any(True for _ in module.parameters(recurse=False)):
                for hook in (
                    module.register_forward_pre_hook(self._entered(name)),
                    module.register_forward_hook(self._left(name), always_call=True),
                ):
                    self._modes.callback(hook.remove)
        self.running = True

    def stop(self) -> None:
        """End; does nothing if nothing is being counted."""
        if self.running:
            self._note()
            self.running = False
            self._modes.close()

    def _note(self) -> None:
        total = self._counter.total
        if total > self._counted:
            self.segments.append((self._inside[-1] if self._inside else "", total - self._counted))
            self._counted = total

    def _entered(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._note()
            self._inside.append(name)

        return hook

    def _left(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._note()
            if name in self._inside:
                del self._inside[self._inside.index(name) :]

        return hook
