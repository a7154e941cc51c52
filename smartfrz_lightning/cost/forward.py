"""ForwardFlops: what the forward pass of a model costs, by module."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

aten = torch.ops.aten


def _recurrent(x: Sequence[int], weights: Sequence[Any]) -> int:
    """Fused LSTM and RNN layers, which the table lacks: at every step of every sequence all weights are multiplied."""
    positions = torch.Size(x[:-1]).numel()
    return 2 * positions * sum(torch.Size(weight).numel() for weight in weights if weight is not None and len(weight) == 2)


_ATTENTION_CPU = aten._scaled_dot_product_flash_attention_for_cpu
_MISSING: dict[Any, Callable[..., int]] = {
    aten.mkldnn_rnn_layer: lambda x, w1, w2, *args, out_shape=None, **kw: _recurrent(x, (w1, w2)),
    aten._cudnn_rnn: lambda x, weights, *args, out_shape=None, **kw: _recurrent(x, weights),
}
if _ATTENTION_CPU not in flop_registry:  # in older versions of PyTorch
    _MISSING[_ATTENTION_CPU] = flop_registry[aten._scaled_dot_product_flash_attention]


class ForwardFlops:
    """Count the FLOPs of a forward pass with PyTorch's ``FlopCounterMode``, by the module that is running.

    Only modules that own parameters are told apart. Operations inside of compiled regions, and of
    higher-order operators such as ``torch.cond``, are not counted.

    Args:
        model: The model.

    Attributes:
        segments: FLOPs in the order of running, as ``(module, FLOPs)``; the module is empty outside of them all.
        running: Whether a forward pass is being counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self.segments: list[tuple[str, float]] = []
        self.running = False
        self._model = model
        self._counter = FlopCounterMode(display=False, custom_mapping=_MISSING)
        self._modes = contextlib.ExitStack()
        self._inside: list[str] = []
        self._counted = 0
        self._paused = False

    @property
    def total(self) -> float:
        """FLOPs of the whole forward pass."""
        return sum(flops for _, flops in self.segments)

    def start(self) -> None:
        """Begin, before the forward pass."""
        self._modes.enter_context(self._counter)
        for name, module in self._model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
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

    def pause(self) -> None:
        """Count nothing until :meth:`resume`."""
        if self.running and not self._paused:
            self._note()
            self._paused = True

    def resume(self) -> None:
        """Count on."""
        if self.running and self._paused:
            self._counted, self._paused = self._counter.get_total_flops(), False
            self._inside.clear()

    def _note(self) -> None:
        if self._paused:
            return
        total = self._counter.get_total_flops()
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
