"""What the autograd graph of a loss says about parameters: which operation uses them, in which order, and the heads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from smartfrz_lightning.private.pytorch import gives_a_number, is_own_function, sequence_number, shape_of

_PRODUCTS = ("mm", "conv", "linear", "embedding", "rnn", "lstm", "gru", "attention", "trilinear", "dot", "mv")
_READINGS = ((True, False), (True, True), (False, False), (False, True))  # constants, look_ups
_LOOK_UPS = ("IndexBackward", "IndexSelect", "IndexAdd", "Gather", "Take")


@dataclass
class StepUse:
    """What one training step showed. Times are autograd sequence numbers; parameters go by name.

    Attributes:
        first: When each parameter was first used.
        last: When it was last used.
        in_product: Parameters that were multiplied, convolved or looked up.
        fed_by: For each other parameter, those whose product feeds the operation that uses it.
        heads: Parameters of the last operation on each path to a loss.
        ran: When the ``forward`` of each module began first.
        changed: Modules whose buffers moved.
    """

    first: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    in_product: set[str] = field(default_factory=set)
    fed_by: dict[str, frozenset[str]] = field(default_factory=dict)
    heads: set[str] = field(default_factory=set)
    ran: dict[str, int] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)

    def read(self, losses: Iterable[Tensor], names: Mapping[int, str]) -> None:
        """Add what the graphs of some losses show, parameters by ``id``; call it before their ``backward``."""
        roots = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
        # In a batch of one, data may have the shape of a parameter; and data may be the indices into a table.
        found = (_sources(roots, names, *how) for how in _READINGS)
        sources = next(filter(_takes_data, found), None) or _sources(roots, names, *_READINGS[0])
        for node, source in sources.items():
            if source is None:
                self._add(node, sources)
        self.heads |= _heads(roots, sources, names)

    def _add(self, node: Any, sources: dict[Any, frozenset[str] | None]) -> None:
        used = _used(node, sources)
        if not used:
            return
        at = sequence_number(node)
        for name in used:
            self.first[name] = min(at, self.first.get(name, at))
            self.last[name] = max(at, self.last.get(name, at))
        if _multiplies(node, sources):
            self.in_product |= used
        elif feeder := _feeder(node, sources):
            for name in used:
                self.fed_by.setdefault(name, feeder)


def _is_product(node: Any) -> bool:
    """Whether a node of the graph multiplies matrices, convolves or looks up: the work that layers are made of."""
    name = node.name().lower()
    return any(part in name for part in _PRODUCTS) and "upsample" not in name


def _multiplies(node: Any, sources: dict[Any, frozenset[str] | None]) -> bool:
    """Whether a node is a product, or a look-up or a function of the user's that takes a matrix of parameters."""
    if _is_product(node):
        return True
    if not is_own_function(node) and not node.name().startswith(_LOOK_UPS):
        return False
    used = [(child, number) for child, number in node.next_functions if child is not None and sources[child]]
    return any(sum(size > 1 for size in shape_of(child, number)) > 1 for child, number in used)


def _takes_data(sources: dict[Any, frozenset[str] | None]) -> bool:
    """Whether anything but parameters goes into a product with some."""
    taken = (node for node, source in sources.items() if source is None and _used(node, sources))
    return any(_multiplies(node, sources) for node in taken)


def _children(node: Any) -> list[Any]:
    return [child for child, _ in node.next_functions if child is not None]


def _sources(
    roots: list[Any], names: Mapping[int, str], constants: bool, look_ups: bool
) -> dict[Any, frozenset[str] | None]:
    """For every node the parameters that it was computed from alone; ``None`` if anything else went into it.

    A transpose, a cast, a mask or a weight norm of parameters stands for them. What needs no gradient and keeps the
    shape of one of them is taken for a constant, or else for data; without ``constants`` for data, too, and with
    ``look_ups`` the indices into a table.
    """
    found: dict[Any, frozenset[str] | None] = {}
    stack = list(roots)
    while stack:
        node = stack[-1]
        if node in found:
            stack.pop()
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "checkpoint(use_reentrant=True) hides the layers of its block, and may leave them without gradients "
                "behind a frozen one: give use_reentrant=False (transformers: "
                "gradient_checkpointing_kwargs={'use_reentrant': False})"
            )
        waiting = [child for child in _children(node) if child not in found]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        found[node] = _source(node, found, names, constants, look_ups)
    return found


def _source(
    node: Any, found: dict[Any, frozenset[str] | None], names: Mapping[int, str], constants: bool, look_ups: bool
) -> frozenset[str] | None:
    if (leaf := getattr(node, "variable", None)) is not None:
        name = names.get(id(leaf))
        return None if name is None else frozenset({name})
    own = [found[child] for child in _children(node)]
    if not own or any(source is None for source in own):
        return None
    data = any(child is None for child, _ in node.next_functions)  # what needs no gradient
    if constants and data:
        data = _is_product(node) or not _keeps_shape(node)
    if data or "embedding" in node.name().lower():  # the indices
        return None
    if look_ups and node.name().startswith(_LOOK_UPS):
        return None
    return frozenset().union(*(source for source in own if source))


def _keeps_shape(node: Any) -> bool:
    """Whether a result has the shape of something that it was made from: data would give it that of a batch."""
    return shape_of(node) in [shape_of(child, number) for child, number in node.next_functions if child is not None]


def _used(node: Any, sources: dict[Any, frozenset[str] | None]) -> frozenset[str]:
    return frozenset().union(*(sources[child] or () for child in _children(node)))


def _feeder(node: Any, sources: dict[Any, frozenset[str] | None]) -> frozenset[str]:
    """The parameters of the product whose output reaches this node through operations with a single input."""
    while True:
        inputs = {child for child in _children(node) if sources[child] is None}
        if len(inputs) != 1:
            return frozenset()
        node = inputs.pop()
        if _multiplies(node, sources):
            return _used(node, sources)


def _heads(roots: list[Any], sources: dict[Any, frozenset[str] | None], names: Mapping[int, str]) -> set[str]:
    """Parameters with a path to a loss on which no others lie.

    What is added (a bias, a penalty on weights) lies beside the path, and so does a single number (a temperature) and
    what weighs losses.
    """
    numbers = {names.get(id(leaf)) for node in sources if (leaf := getattr(node, "variable", None)) is not None
               and leaf.numel() == 1}  # fmt: skip
    heads: set[str] = set()
    seen, stack = set(), [node for node in roots if sources[node] is None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        beside = not _multiplies(node, sources) and (node.name().startswith(("Add", "Sub")) or gives_a_number(node))
        used = frozenset() if beside else _used(node, sources)
        if used - numbers:
            heads |= used - numbers
        else:
            stack += [child for child in _children(node) if sources[child] is None]
    return heads
