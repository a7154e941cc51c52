"""What tells samples apart: a digest (XXH3) of their content."""

import torch
import xxhash
from torch import Tensor

KEY_BYTES = 16


def digest(tensor: Tensor) -> bytes:
    """Of all values of a tensor, 16 bytes."""
    return xxhash.xxh3_128_digest(_bytes(tensor))


def row_digests(tensor: Tensor) -> list[bytes]:
    """Of each row along the first dimension."""
    rows = len(tensor)
    values = _bytes(tensor)
    size = len(values) // rows if rows else 0
    return [xxhash.xxh3_128_digest(values[row * size : (row + 1) * size]) for row in range(rows)]


def joined(digests: list[bytes]) -> bytes:
    """One digest of several."""
    return digests[0] if len(digests) == 1 else xxhash.xxh3_128_digest(b"".join(digests))


def _bytes(tensor: Tensor) -> memoryview:
    return _flat(tensor.detach().cpu()).view(torch.uint8).numpy().data


def _flat(tensor: Tensor) -> Tensor:
    """All values in one row of memory."""
    values = tensor.detach().contiguous().reshape(-1)
    if values.numel() and values.stride(0) != 1:  # a single value counts as contiguous whatever its stride
        return values.new_empty(values.numel()).copy_(values)
    return values
