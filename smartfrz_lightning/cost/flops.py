"""FLOPs of a real training step: forward, weight gradients and activation gradients apart."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, flop_registry

from smartfrz_lightning.layers.tracing import ParameterTracer, tensors_in
from smartfrz_lightning.private.pytorch import in_backward

aten = torch.ops.aten


def _recurrent(x: Tensor, *rest: Any, out_val: Any = None, **_: Any) -> int:
    """Fused LSTM and RNN layers, which the table lacks: at every step of every sequence all weights are multiplied."""
    weights = [tensor for tensor in tensors_in(rest[:4]) if tensor.ndim == 2 and tensor is not x]
    return 2 * (x.numel() // x.shape[-1]) * sum(weight.numel() for weight in weights)


def _recurrent_backward(*args: Any, **kwargs: Any) -> int:
    return 2 * _recurrent(*args, **kwargs)


_FORMULAS = {
    aten.mkldnn_rnn_layer: lambda x, *args, **kw: _recurrent(x, *args[:2], **kw),
    aten.mkldnn_rnn_layer_backward: lambda x, *args, **kw: _recurrent_backward(x, *args[:2], **kw),
    aten._cudnn_rnn: lambda x, weights, *args, **kw: _recurrent(x, weights, **kw),
    aten._cudnn_rnn_backward: lambda x, weights, *args, **kw: _recurrent_backward(x, weights, **kw),
    # Fused attention on the CPU is missing in the table of older versions of PyTorch.
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
    **flop_registry,
}


@dataclass
class StepFlops:
    """Floating-point operations of training steps; a multiply-add counts as two.

    Example:
        >>> from smartfrz_lightning.cost.flops import StepFlops
        >>> run = StepFlops()
        >>> run.add(StepFlops(forward=60, weight_gradient=60, activation_gradient=50).times(10))
        >>> run
        StepFlops(forward=600, weight_gradient=600, activation_gradient=500)
        >>> run.total
        1700
    """

    forward: float = 0
    weight_gradient: float = 0
    activation_gradient: float = 0

    @property
    def total(self) -> float:
        """All three together."""
        return self.forward + self.weight_gradient + self.activation_gradient

    def add(self, other: "StepFlops") -> None:
        """Add the FLOPs of other steps."""
        self.forward += other.forward
        self.weight_gradient += other.weight_gradient
        self.activation_gradient += other.activation_gradient

    def times(self, steps: float) -> "StepFlops":
        """FLOPs of so many of these steps."""
        return StepFlops(steps * self.forward, steps * self.weight_gradient, steps * self.activation_gradient)


class StepFlopCounter(ParameterTracer):
    """Count one training step with the formulas of ``torch.utils.flop_counter``.

    The weight gradient of a product costs what its forward costs, if its weight trains; what else is counted in the
    backward pass is activation gradient. Grouped convolution is counted as it is: the stock counter takes its weight
    gradient ``groups`` times. Operations inside compiled regions are not seen.

    Args:
        model: The model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.cost.flops import StepFlopCounter
        >>> net = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
        >>> with StepFlopCounter(net) as counter:
        ...     net(torch.rand(4, 10)).sum().backward()
        >>> counter.flops
        StepFlops(forward=2400, weight_gradient=2400, activation_gradient=800)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.seconds = 0.0
        """Time that the counting itself took."""
        self.products: list[tuple[frozenset[str], float]] = []
        """Every product of the forward pass: the parameters and buffers in it, and its FLOPs."""
        self.saw_backward = False
        """Whether a backward pass ran."""
        self._trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._forward = self._weight = self._backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        start = time.perf_counter()
        self._args = (args, kwargs or {})
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.seconds += time.perf_counter() - start - self.last_operation_seconds
        return out

    def on_operation(self, func: Any, inputs: list[Tensor], out: Any, sources: list[frozenset[str] | None]) -> None:
        backward = in_backward()
        self.saw_backward |= backward
        packet = func.overloadpacket
        if packet not in _FORMULAS:
            return
        args, kwargs = self._args
        if packet is aten.convolution_backward:
            grad_out, x, weight, _, _, _, _, transposed, _, _, mask = args
            once = conv_flop_count(x.shape, weight.shape, grad_out.shape, transposed=transposed)
            self._backward += once * (mask[0] + mask[1])
            return
        flops = _FORMULAS[packet](*args, **kwargs, out_val=out)
        if backward:
            self._backward += flops
            return
        self._forward += flops
        used = frozenset().union(*(source for source in sources if source))
        self.products.append((used, flops))
        if used & self._trainable and torch.is_grad_enabled():
            self._weight += flops

    @property
    def flops(self) -> StepFlops:
        """What the step cost."""
        weight = min(self._weight, self._backward)
        return StepFlops(self._forward, weight, self._backward - weight)
