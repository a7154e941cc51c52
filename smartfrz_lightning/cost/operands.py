"""Operands: what the factors of products in a forward pass depend on."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.private.pytorch import StorageWeakRef, place_of, tensors_in

Operand = tuple[int, bool]
"""Which parameters it depends on through gradients, as bits, and whether it was made from parameters alone."""

Product = tuple[float, list[Operand]]
"""FLOPs, and the operands; the gradient of each of them costs as much again."""


class Operands:
    """Follows the tensors of a forward pass, and tells which parameters each depends on.

    A tensor is known by its storage, one that was made from parameters and buffers alone (by a view, a cast, a mask, a
    parametrization) by its place in it, as several parameters may share a storage.

    Args:
        model: Whose parameters; the bits go by their order.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = list(model.named_parameters())
        self._bits = {name: 1 << number for number, (name, _) in enumerate(parameters)}
        self._inputs = 1 << len(parameters)
        self._used = 0  # what has been multiplied so far
        self._storages: dict[int, int] = {}
        self._weights: dict[tuple[int, int], int] = {}
        self._held: list[StorageWeakRef] = []  # so that no other storage takes the place of one that is gone
        for buffer in model.buffers():
            self._add_weight(buffer, 0)
        for name, parameter in parameters:
            self.add_parameter(name, parameter)

    def add_parameter(self, name: str, parameter: Tensor) -> None:
        """A module has this tensor under this name; one that several have goes by the first."""
        self._add_weight(parameter, self._bits.get(name, 0))

    def of(self, tensors: Sequence[Tensor]) -> list[Operand]:
        """What the inputs of an operation depend on.

        That is nothing where no gradient flows: behind ``detach``, under ``no_grad``; but a function with a backward
        pass of its own runs under that as well. What needs a gradient for no reason that is known depends on all that
        came before it, or else on inputs of the model.
        """
        found = [(self._of(tensor), place_of(tensor) in self._weights) for tensor in tensors]
        if not torch.is_grad_enabled() and not any(bits for bits, weight in found if not weight):
            return [(0, weight) for _, weight in found]
        return found

    def follow(self, operands: Sequence[Operand], out: Any) -> None:
        """An operation on these gave this."""
        bits = all_of(operands)
        weight = bool(operands) and all(weight for _, weight in operands)
        for tensor in tensors_in(out):
            if weight:
                self._add_weight(tensor, bits)
            else:
                storage = self._hold(tensor)[0]
                self._storages[storage] = self._storages.get(storage, 0) | bits

    def multiplied(self, products: Sequence[Product]) -> None:
        """Weights in these products are what comes before others."""
        for _, operands in products:
            self._used |= all_of([(bits, weight) for bits, weight in operands if weight])

    def _of(self, tensor: Tensor) -> int:
        if not tensor.requires_grad:
            return 0
        place = place_of(tensor)
        return self._weights.get(place, 0) or self._storages.get(place[0], 0) or self._used or self._inputs

    def _add_weight(self, tensor: Tensor, bits: int) -> None:
        self._weights.setdefault(self._hold(tensor), bits)

    def _hold(self, tensor: Tensor) -> tuple[int, int]:
        if tensor.layout is torch.strided:
            self._held.append(StorageWeakRef(tensor.untyped_storage()))
        return place_of(tensor)


def all_of(operands: Sequence[Operand]) -> int:
    """What any of these depends on."""
    return functools.reduce(int.__or__, (bits for bits, _ in operands), 0)
