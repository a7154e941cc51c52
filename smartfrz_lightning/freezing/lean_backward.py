"""What is frozen behind a layer that trains keeps no activations for its backward pass.

PyTorch keeps the input of a convolution and of a BatchNorm in eval mode for the gradients of their weights, even where
the weights are frozen. The gradient of the input does not need it: both are linear in their input. (LayerNorm and
GroupNorm are not, and need it; linear layers do not keep it to begin with.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smartfrz_lightning.private.pytorch import Convolution, RunningNorm, is_compiled

_LOOK_AFTER, _LOOK_EVERY = 10, 50
"""Batches: in the first ones a GPU has not shown yet how much memory it takes."""


class SpareMemory:
    """Whether a GPU has memory to spare: keeping less takes time there, as calls have to be watched.

    On an H100, ResNet-50 and EfficientNet-Lite0 with scattered frozen layers and 64 images a step took 0.67 to 0.80 of
    a full step as they are, and 0.89 to 1.52 of it lean. Memory is to spare while less than a quarter of it is in use
    with activations kept lean, and until more than half of it is: by all processes together.

    Args:
        model: The model.

    Example:
        >>> from torch import nn
        >>> from smartfrz_lightning.freezing.lean_backward import SpareMemory
        >>> SpareMemory(nn.Linear(2, 2))()  # on a CPU it saves time as well
        False
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._batches, self._spare = 0, False

    def __call__(self) -> bool:
        """Asked once a batch."""
        device = next((parameter.device for parameter in self._model.parameters()), None)
        if device is None or device.type != "cuda":
            return False
        if self._batches >= _LOOK_AFTER and (self._batches - _LOOK_AFTER) % _LOOK_EVERY == 0:
            free, total = torch.cuda.mem_get_info(device)
            used = 1 - free / total
            self._spare = used < (0.5 if self._spare else 0.25)
        self._batches += 1
        return self._spare


class LeanBackward:
    """Lets the frozen convolutions and BatchNorms of a model keep nothing, between :meth:`open` and :meth:`close`.

    Modules keep their type, state and hooks; in between, calls of their ``forward`` are watched.

    Args:
        model: The model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.freezing.lean_backward import LeanBackward
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        >>> _ = net[1].requires_grad_(False)
        >>> lean, x = LeanBackward(net), torch.rand(2, 3, 9, 9)
        >>> lean.open()
        >>> net(x).grad_fn.next_functions[0][0].name()
        'LeanConvolutionBackward'
        >>> lean.close()
        >>> net(x).grad_fn.next_functions[0][0].name()
        'ConvolutionBackward0'
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules: list[tuple[nn.Module, Callable | None]] = []
        self._open = False
        self.watch()

    def watch(self) -> None:
        """What is frozen has changed."""
        self.close()
        self._modules = []
        if any(map(is_compiled, self._model.modules())):  # the compiler decides what it keeps
            return
        for module in self._model.modules():
            own = list(module.parameters(recurse=False))
            if own and isinstance(module, Convolution | RunningNorm) and not any(p.requires_grad for p in own):
                self._modules.append((module, vars(module).get("forward")))

    def open(self) -> None:
        """A training batch begins."""
        if not self._open:
            for module, _ in self._modules:
                module.forward = _Lean(module)  # type: ignore[method-assign]
        self._open = True

    def close(self) -> None:
        """The batch is over, or broke off."""
        if self._open:
            for module, forward in self._modules:
                if not isinstance(vars(module).get("forward"), _Lean):  # somebody else's, since
                    continue
                if forward is not None:
                    module.forward = forward  # type: ignore[method-assign]
                else:
                    del vars(module)["forward"]
        self._open = False


class _Lean:
    def __init__(self, module: nn.Module) -> None:
        self._forward = module.forward
        self.stands_for = vars(module).get("forward")  # for the front cache the module is the one that it was

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and args and isinstance(args[0], Tensor) and args[0].requires_grad):
            return self._forward(*args, **kwargs)
        with _LeanFunctions():
            return self._forward(*args, **kwargs)


class _LeanFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        replacement = _REPLACED.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        return replacement(func, *args, **(kwargs or {}))


# --- convolution


def _convolution(transposed: bool, dimensions: int) -> Callable:
    def replaced(
        func: Callable,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        x = input
        names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
        more = {**dict(zip(names, rest, strict=False)), **named}
        frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
        odd = isinstance(padding, str) or x.ndim != dimensions + 2 or set(more) - set(names) or x.is_complex()
        device = x.device.type
        mixed = x.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype)
        if torch.is_autocast_enabled(device):
            mixed = torch.double in (x.dtype, weight.dtype)  # which autocast leaves alone
        if not frozen or odd or mixed:
            return func(x, weight, bias, stride, padding, *rest, **named)
        if torch.is_autocast_enabled(device) and x.is_floating_point():
            x = x.to(torch.get_autocast_dtype(device))

        def sizes(value: Any) -> list[int]:
            return [value] * dimensions if isinstance(value, int) else list(value)

        dilation, output_padding = sizes(more.get("dilation", 1)), sizes(more.get("output_padding", 0))
        how = (sizes(stride), sizes(padding), dilation, transposed, output_padding, more.get("groups", 1))
        return LeanConvolution.apply(x, weight, bias, how)  # type: ignore[no-any-return]

    return replaced


class LeanConvolution(torch.autograd.Function):
    """A convolution with frozen weights, of which only the weights are kept.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.freezing.lean_backward import LeanConvolution
        >>> x, weight = torch.rand(1, 2, 5, 5, requires_grad=True), torch.rand(3, 2, 3, 3)
        >>> out = LeanConvolution.apply(x, weight, None, ([1, 1], [0, 0], [1, 1], False, [0, 0], 1))
        >>> out.equal(torch.conv2d(x, weight)), [tensor.shape for tensor in out.grad_fn.saved_tensors]
        (True, [torch.Size([3, 2, 3, 3])])
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple) -> Tensor:
        """As ``torch.convolution``."""
        return torch.convolution(x, weight.to(x.dtype), bias if bias is None else bias.to(x.dtype), *how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _, ctx.how = inputs
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)
        ctx.shape, ctx.stride = x.shape, x.stride()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        """Forward mode: the convolution of the tangent."""
        [weight] = ctx.saved_tensors
        return torch.convolution(tangents[0], weight.to(tangents[0].dtype), None, *ctx.how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        """The gradient of the input; that of the gradient too, as it is linear."""
        [grad], [weight] = grads, ctx.saved_tensors
        # Of the input only the sizes and the layout are asked for.
        like = torch.empty_strided(ctx.shape, ctx.stride, dtype=grad.dtype, device=grad.device)
        mask = (True, False, False)
        out, _, _ = torch.ops.aten.convolution_backward(grad, like, weight.to(grad.dtype), None, *ctx.how, mask)
        return out, None, None, None


# --- BatchNorm


def _batch_norm(
    func: Callable,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    frozen = not any(tensor is not None and tensor.requires_grad for tensor in (weight, bias))
    if training or running_mean is None or running_var is None or not frozen:
        return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return LeanBatchNorm.apply(input, running_mean, running_var, weight, bias, eps)  # type: ignore[no-any-return]


class LeanBatchNorm(torch.autograd.Function):
    """A frozen BatchNorm in eval mode, of which a number a channel is kept.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.freezing.lean_backward import LeanBatchNorm
        >>> x, mean, var = torch.rand(2, 3, 4, 4, requires_grad=True), torch.zeros(3), torch.ones(3)
        >>> [tensor.shape for tensor in LeanBatchNorm.apply(x, mean, var, None, None, 1e-5).grad_fn.saved_tensors]
        [torch.Size([3])]
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """As ``torch.nn.functional.batch_norm`` with ``training=False``."""
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, _, var, weight, _, eps = inputs
        scale = torch.rsqrt(var + eps)
        scale = scale if weight is None else scale * weight
        ctx.save_for_backward(scale)
        ctx.save_for_forward(scale)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        """Forward mode: the tangent, scaled."""
        [scale] = ctx.saved_tensors
        return (tangents[0] * scale.view(1, -1, *([1] * (tangents[0].ndim - 2)))).to(tangents[0].dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        """The gradient of the input; that of the gradient too, as it is linear."""
        [grad], [scale] = grads, ctx.saved_tensors
        by_channel: Sequence[int] = (1, -1, *([1] * (grad.ndim - 2)))
        return (grad * scale.view(by_channel)).to(grad.dtype), None, None, None, None, None


_REPLACED: dict[Callable, Callable] = {
    torch.conv1d: _convolution(False, 1),
    torch.conv2d: _convolution(False, 2),
    torch.conv3d: _convolution(False, 3),
    torch.conv_transpose1d: _convolution(True, 1),
    torch.conv_transpose2d: _convolution(True, 2),
    torch.conv_transpose3d: _convolution(True, 3),
    F.batch_norm: _batch_norm,
}
