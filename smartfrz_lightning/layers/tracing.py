"""Which parameters feed which tensor operation, seen while a model runs."""

import functools
import time
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from smartfrz_lightning.private.pytorch import (
    HigherOrderOperator,
    OpOverload,
    TorchDispatchMode,
    WeakTensorKeyDictionary,
    tree_leaves,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class ParameterTracer(TorchDispatchMode):
    """Follow parameters and buffers through views, casts and reparametrisations to the operations that use them.

    A tensor computed from parameters and buffers alone (a transpose, a bfloat16 copy, a weight norm) stands for
    those parameters; the first operation that mixes it with anything else *uses* them. This sees functional calls,
    bare ``nn.Parameter`` and tied weights, which module hooks miss.

    Subclasses implement :meth:`on_operation`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.layers.tracing import ParameterTracer
        >>> class ShowUses(ParameterTracer):
        ...     def on_operation(self, func, inputs, out, sources):
        ...         if None in sources and any(sources):
        ...             print(func.overloadpacket.__name__, sorted(set().union(*filter(None, sources))))
        >>> net = nn.Linear(4, 2)
        >>> with ShowUses(net):
        ...     out = net(torch.rand(3, 4)).relu()
        addmm ['bias', 'weight']
    """

    supports_higher_order_operators = True
    """Such as ``torch.cond``: they run, but what happens inside is not seen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.last_operation_seconds = 0.0
        self._model = model
        self._hooks: list[Any] = []
        self._sources: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._name_of = {id(parameter): name for name, parameter in model.named_parameters()}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._sources[tensor] = frozenset({name})

    def __enter__(self) -> "Self":
        if any(isinstance(parameter, DTensor) for parameter in self._model.parameters()):
            for name, module in self._model.named_modules():
                self._hooks.append(module.register_forward_pre_hook(self._take_gathered(name)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _take_gathered(self, module_name: str) -> Callable:
        """While a module runs, FSDP2 puts gathered weights in the place of its own."""

        def hook(module: nn.Module, *_: Any) -> None:
            for own, parameter in module.named_parameters(prefix=module_name, recurse=False):
                self._name_of[id(parameter)] = own
                self._sources[parameter] = frozenset({own})

        return hook

    def on_operation(
        self, func: OpOverload, inputs: list[Tensor], out: Any, sources: list[frozenset[str] | None]
    ) -> None:
        """Called after every operation.

        ``sources`` tells for each tensor in ``inputs`` the parameters and buffers it was computed from alone, or
        ``None`` if anything else went into it.
        """
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        start = time.perf_counter()
        out = func(*args, **kwargs)
        self.last_operation_seconds = time.perf_counter() - start
        if isinstance(func, HigherOrderOperator):
            _warn_of_unseen(func)
            return out
        inputs = tensors_in((args, kwargs))
        sources = [self._sources.get(tensor) for tensor in inputs]
        known = [source for source in sources if source is not None]
        if known and len(known) == len(sources):
            for result in tensors_in(out):
                self._sources[result] = frozenset().union(*known)
        self.on_operation(func, inputs, out, sources)
        return out


@functools.cache
def _warn_of_unseen(func: HigherOrderOperator) -> None:
    warnings.warn(
        f"{func} runs functions of its own, whose layers and FLOPs are not seen: layers that are used nowhere else "
        "count as unused and always train",
        stacklevel=2,
    )


_PRODUCTS = ("mm", "conv", "linear", "embedding", "rnn", "lstm", "gru", "attention", "trilinear", "dot", "mv")


def is_product(func: OpOverload) -> bool:
    """Whether an operation multiplies matrices, convolves or looks up: the work that layers are made of.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.layers.tracing import is_product
        >>> is_product(torch.ops.aten.addmm.default), is_product(torch.ops.aten.relu.default)
        (True, False)
    """
    name = func.overloadpacket.__name__
    return any(part in name for part in _PRODUCTS)


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors in a nest of tuples, lists and dicts.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.layers.tracing import tensors_in
        >>> tensors_in({"logits": torch.tensor(1), "hidden": [torch.tensor(2), (None, torch.tensor(3))], "name": "x"})
        [tensor(1), tensor(2), tensor(3)]
    """
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def parameters_reaching(losses: Iterable[Tensor]) -> set[int]:
    """``id`` of every leaf tensor with a path to one of ``losses`` in the autograd graph.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.layers.tracing import parameters_reaching
        >>> used, unused = nn.Linear(4, 2), nn.Linear(4, 2)
        >>> reaching = parameters_reaching([used(torch.rand(1, 4)).sum()])
        >>> id(used.weight) in reaching, id(unused.weight) in reaching
        (True, False)
    """
    found: set[int] = set()
    seen = set()
    stack = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        stack.extend(parent for parent, _ in node.next_functions if parent is not None)
    return found
