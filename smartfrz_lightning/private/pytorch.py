"""Parts of PyTorch that are not public, under names of our own."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._ops import HigherOrderOperator  # noqa: F401
from torch.autograd.function import BackwardCFunction
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: F401
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # noqa: F401
from torch.nn.modules.batchnorm import _NormBase as RunningNorm  # noqa: F401
from torch.nn.modules.conv import _ConvNd as Convolution  # noqa: F401
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.spectral_norm import SpectralNorm  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: F401
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: F401


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """All tensors in a pytree."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def place_of(tensor: torch.Tensor) -> tuple[int, int]:
    """The storage of a tensor and where in it the tensor begins; itself where it has none, as a sparse tensor."""
    strided = tensor.layout is torch.strided
    return (tensor.untyped_storage()._cdata, int(tensor.storage_offset())) if strided else (id(tensor), 0)


def sequence_number(node: Any = None) -> int:
    """The number that autograd gave to a node, or gives to the next operation of this thread that it records."""
    return torch.autograd._get_sequence_nr() if node is None else node._sequence_nr()


def in_backward() -> bool:
    """Whether this runs inside of a backward pass."""
    return torch._C._current_graph_task_id() >= 0


def in_own_function() -> bool:
    """Whether this runs in the forward pass of a ``torch.autograd.Function``, one that takes ``ctx``."""
    frame = sys._getframe()
    while frame is not None:
        first = frame.f_code.co_varnames[:1]
        if frame.f_code.co_name == "forward" and first and isinstance(frame.f_locals.get(first[0]), BackwardCFunction):
            return True
        frame = frame.f_back
    return False


def is_own_function(node: Any) -> bool:
    """Whether a node of the autograd graph is of a ``torch.autograd.Function`` written in Python."""
    return isinstance(node, BackwardCFunction)


def gives_a_number(node: Any) -> bool:
    """Whether what a node of the autograd graph gives has no dimension, as a loss."""
    return all(len(output.shape) == 0 for output in node._input_metadata)


def shape_of(node: Any, number: int = 0) -> torch.Size:
    """Of an output of a node of the autograd graph."""
    return torch.Size(node._input_metadata[number].shape)


def register_gradient_hooks(new: torch.Tensor, old: torch.Tensor) -> None:
    """Register on one tensor the gradient hooks of another."""
    for hook in (old._backward_hooks or {}).values():
        new.register_hook(hook)


def steps_in_backward(parameter: torch.Tensor) -> bool:
    """Whether a hook is to run as soon as a parameter's gradient is complete, as where optimizers step in it."""
    return bool(parameter._post_accumulate_grad_hooks)


def random_states(device: torch.device) -> tuple[Any, ...]:
    """What Python, NumPy and PyTorch draw next, on the CPU and on this device."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


@contextmanager
def drawing_from(states: tuple[Any, ...], device: torch.device) -> Iterator[None]:
    """Draw what came after these states; what is drawn in here moves nothing outside."""
    before = random_states(device)
    _set_random_states(states, device)
    try:
        yield
    finally:
        _set_random_states(before, device)


def _set_random_states(states: tuple[Any, ...], device: torch.device) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if states[3] is not None:
        torch.cuda.set_rng_state(states[3], device)


def compile_config() -> Any:
    """Settings of ``torch.compile``."""
    return torch._dynamo.config


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
_HOOKS += ("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks")


def module_hooks(module: nn.Module) -> dict[str, dict]:
    """The hooks of a module, by the names of the tables that hold them."""
    return {name: getattr(module, name) for name in _HOOKS if hasattr(module, name)}


def communication_hooks(wrapper: DistributedDataParallel) -> list[tuple[Any, Any]]:
    """What was registered with ``register_comm_hook``, as ``(hook, state)``."""
    return list(wrapper._comm_hooks)


def bucket_megabytes(wrapper: DistributedDataParallel) -> float:
    """``bucket_cap_mb`` of a wrapper."""
    return wrapper.bucket_bytes_cap / 1024 / 1024


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is compiled, by ``torch.compile``, ``Module.compile`` or TorchScript."""
    kinds = (torch._dynamo.OptimizedModule, torch.jit.ScriptModule)
    return isinstance(module, kinds) or module._compiled_call_impl is not None
