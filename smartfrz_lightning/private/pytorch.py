"""Parts of PyTorch that are not public, under names of our own."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from packaging.version import Version
from torch import nn
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingModuleSource]
from torch._dynamo.callback import callback_handler as compile_callbacks
from torch._ops import HigherOrderOperator, OpOverload
from torch.nn.modules.batchnorm import _NormBase as RunningNorm
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "Convolution",
    "HigherOrderOperator",
    "OpOverload",
    "RunningNorm",
    "SpectralNorm",
    "TorchDispatchMode",
    "WeakTensorKeyDictionary",
    "attributes",
    "below_functions",
    "bucket_megabytes",
    "communication_hooks",
    "compile_callbacks",
    "compile_config",
    "has_global_hooks",
    "in_backward",
    "is_compiled",
    "is_plain",
    "module_hooks",
    "own_tensors",
    "placeholder",
    "torch_is_older",
    "tree_leaves",
    "tree_map_only",
    "writes",
]


def torch_is_older(major: int, minor: int) -> bool:
    """Whether PyTorch is older than a version.

    Example:
        >>> from smartfrz_lightning.private.pytorch import torch_is_older
        >>> torch_is_older(2, 9), torch_is_older(99, 0)
        (False, True)
    """
    return Version(torch.__version__) < Version(f"{major}.{minor}.0.dev0")


def in_backward() -> bool:
    """Whether the operation that runs now belongs to a backward pass.

    Example:
        >>> from smartfrz_lightning.private.pytorch import in_backward
        >>> in_backward()
        False
    """
    return torch._C._current_autograd_node() is not None


def compile_config() -> Any:
    """Settings of ``torch.compile``.

    Example:
        >>> from smartfrz_lightning.private.pytorch import compile_config
        >>> compile_config().recompile_limit > 0
        True
    """
    return torch._dynamo.config


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
_HOOKS += ("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks")


def module_hooks(module: nn.Module, names: Iterable[str] = _HOOKS) -> dict[str, dict]:
    """The hooks of a module, by the names of the tables that hold them.

    Example:
        >>> from torch import nn
        >>> from smartfrz_lightning.private.pytorch import module_hooks
        >>> net = nn.Linear(2, 2)
        >>> handle = net.register_forward_pre_hook(print)
        >>> list(module_hooks(net)["_forward_pre_hooks"].values())
        [<built-in function print>]
    """
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def communication_hooks(wrapper: DistributedDataParallel) -> list[tuple[Any, Any]]:
    """What was registered with ``register_comm_hook``, as ``(hook, state)``.

    Example:
        >>> from torch import distributed, nn
        >>> from torch.nn.parallel import DistributedDataParallel
        >>> from smartfrz_lightning.private.pytorch import communication_hooks
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> communication_hooks(DistributedDataParallel(nn.Linear(2, 2)))
        []
        >>> distributed.destroy_process_group()
    """
    return list(wrapper._comm_hooks)


def bucket_megabytes(wrapper: DistributedDataParallel) -> float:
    """``bucket_cap_mb`` of a wrapper.

    Example:
        >>> from torch import distributed, nn
        >>> from torch.nn.parallel import DistributedDataParallel
        >>> from smartfrz_lightning.private.pytorch import bucket_megabytes
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> bucket_megabytes(DistributedDataParallel(nn.Linear(2, 2), bucket_cap_mb=10))
        10.0
        >>> distributed.destroy_process_group()
    """
    return wrapper.bucket_bytes_cap / 1024 / 1024


def placeholder(kind: type, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: Any) -> Any:
    """A tensor of a subclass that has a shape, but no values.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.private.pytorch import placeholder
        >>> class Empty(torch.Tensor):
        ...     @classmethod
        ...     def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        ...         raise ValueError("there are no values")
        >>> placeholder(Empty, (2, 3), (3, 1), torch.float32, "cpu").shape
        torch.Size([2, 3])
    """
    return torch.Tensor._make_wrapper_subclass(kind, shape, strides=stride, dtype=dtype, device=device)


def below_functions() -> Any:
    """A context in which ``__torch_function__`` of tensors is not asked.

    Example:
        >>> from smartfrz_lightning.private.pytorch import below_functions
        >>> with below_functions():
        ...     pass
    """
    return torch._C.DisableTorchFunctionSubclass()


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is compiled, by ``torch.compile``, ``Module.compile`` or TorchScript.

    Example:
        >>> from torch import nn
        >>> from smartfrz_lightning.private.pytorch import is_compiled
        >>> is_compiled(nn.Linear(2, 2)), is_compiled(torch.compile(nn.Linear(2, 2)))
        (False, True)
    """
    kinds = (torch._dynamo.OptimizedModule, torch.jit.ScriptModule)
    return isinstance(module, kinds) or module._compiled_call_impl is not None


def writes(tensor: torch.Tensor) -> int:
    """How often a tensor was written to, except through ``.data``.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.private.pytorch import writes
        >>> writes(torch.ones(1).add_(1))
        1
    """
    return tensor._version


def own_tensors(module: nn.Module) -> list[tuple[dict[str, Any], str, torch.Tensor]]:
    """A module's own parameters and buffers, with the table in which each stands under its name.

    Example:
        >>> from torch import nn
        >>> from smartfrz_lightning.private.pytorch import own_tensors
        >>> [name for table, name, tensor in own_tensors(nn.BatchNorm1d(2))]
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    tables = (module._parameters, module._buffers)
    return [(table, name, t) for table in tables for name, t in table.items() if t is not None]


def has_global_hooks() -> bool:
    """Whether something is hooked to every module.

    Example:
        >>> from smartfrz_lightning.private.pytorch import has_global_hooks
        >>> has_global_hooks()
        False
    """
    module = torch.nn.modules.module
    return bool(module._global_forward_hooks or module._global_forward_pre_hooks or module._global_backward_hooks)


def attributes(module: nn.Module) -> tuple:
    """What a module holds, by identity: attributes, parts, and how many hooks; not its mode.

    A ``forward`` of its own that only stands for another one, as ``stands_for`` says, counts as that one.

    Example:
        >>> from torch import nn
        >>> from smartfrz_lightning.private.pytorch import attributes
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> before = attributes(net)
        >>> net.scale = 2.0
        >>> attributes(net) == before
        False
    """
    own = vars(module)
    held = tuple([id(value) for name, value in own.items() if name not in ("training", "forward")])
    sizes = [len(value) for value in own.values() if isinstance(value, list | dict | set)]
    forward = own.get("forward")
    parts = [id(part) for part in module._modules.values()]
    return held, sizes, parts, id(getattr(forward, "stands_for", forward))


def rounds_products(tensor: torch.Tensor, convolved: bool) -> bool:
    """Whether products that lead to such a tensor may be made in TF32, whose numbers have 11 bits.

    Args:
        tensor: Any.
        convolved: Whether there are convolutions among them: on GPUs these are, unless somebody forbids it.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.private.pytorch import rounds_products
        >>> rounds_products(torch.ones(2), convolved=True)
        False
    """
    if not tensor.is_cuda or tensor.dtype != torch.float32:
        return False
    try:
        return bool((convolved and torch.backends.cudnn.allow_tf32) or torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # set in another way, that these cannot tell
        return True


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but its values: dense, and not in a transform of ``torch.func`` or forward mode.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.private.pytorch import is_plain
        >>> is_plain(torch.ones(2)), is_plain(torch.ones(2).to_sparse()), is_plain(torch.ones(0))
        (True, False, False)
    """
    if tensor.layout != torch.strided or tensor.is_inference() or tensor.is_conj() or tensor.is_neg():
        return False
    if tensor.is_quantized or tensor.is_nested or is_functorch_wrapped_tensor(tensor):
        return False
    return tensor.numel() > 0 and torch.autograd.forward_ad._current_level < 0
