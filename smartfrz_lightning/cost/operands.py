"""Operands: what the factors of products in a forward pass depend on."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.private.pytorch import StorageWeakRef, in_own_function, place_of, tensors_in

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
        first = {id(parameter): 1 << number for number, (_, parameter) in enumerate(parameters)}
        named = list(model.named_parameters(remove_duplicate=False))
        self._bits = {name: first[id(parameter)] for name, parameter in named}
        self._inputs = 1 << len(parameters)
        self._used = 0  # what has been multiplied so far
        self._storages: dict[int, int] = {}
        self._weights: dict[tuple[int, int], int] = {}
        self._parameters: set[tuple[int, int]] = set()
        self._held: list[StorageWeakRef] = []  # so that no other storage takes the place of one that is gone
        for buffer in model.buffers():
            self._weights[self._hold(buffer)] = 0
        for name, parameter in named:
            self.add_parameter(name, parameter)

    def add_parameter(self, name: str, parameter: Tensor) -> None:
        """A module has this tensor under this name."""
        place = self._hold(parameter)
        self._weights[place] = self._bits.get(name, 0)
        self._parameters.add(place)

    def of(self, tensors: Sequence[Tensor]) -> list[Operand]:
        """What the inputs of an operation depend on.

        That is nothing where no gradient flows: behind ``detach``, under ``no_grad``. What needs a gradient for no
        reason that is known is an input of the model, or depends on all that came before it.
        """
        own = not torch.is_grad_enabled() and in_own_function()  # where flags say nothing
        flows = own or torch.is_grad_enabled()
        found = []
        for tensor in tensors:
            place = place_of(tensor)
            bits = self._weights.get(place, 0) | self._storages.get(place[0], 0)
            if tensor.requires_grad and not bits:
                bits = self._inputs if tensor.is_leaf else self._used or self._inputs
            needed = tensor.requires_grad or (own and place not in self._parameters)
            found.append((bits if flows and needed else 0, place in self._weights))
        return found

    def follow(self, operands: Sequence[Operand], out: Any) -> None:
        """An operation on these gave this."""
        bits = all_of(operands)
        weight = bool(operands) and all(weight for _, weight in operands)
        for tensor in tensors_in(out):
            place = self._hold(tensor)
            if weight:
                self._weights.setdefault(place, bits)
                continue
            self._storages[place[0]] = self._storages.get(place[0], 0) | bits
            if place not in self._parameters:
                self._weights.pop(place, None)  # something else was written into it

    def multiplied(self, products: Sequence[Product]) -> None:
        """Weights in these products are what comes before others."""
        for _, operands in products:
            for bits, weight in operands:
                self._used |= bits if weight else 0

    def _hold(self, tensor: Tensor) -> tuple[int, int]:
        if tensor.layout is torch.strided:
            self._held.append(StorageWeakRef(tensor.untyped_storage()))
        return place_of(tensor)


def all_of(operands: Sequence[Operand]) -> int:
    """What any of these depends on."""
    return functools.reduce(int.__or__, (bits for bits, _ in operands), 0)
