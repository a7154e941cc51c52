"""What tells samples apart: a digest of their content."""

import functools

import torch
import xxhash
from torch import Tensor

KEY_BYTES = 16
_BLOCK = 4096  # words that are summed at once on a device


def digest(tensor: Tensor) -> bytes:
    """Of all values of a tensor, 16 bytes."""
    if tensor.is_cuda:
        return _as_bytes(row_sums(tensor.reshape(1, -1)))[0]
    return xxhash.xxh3_128_digest(_bytes(tensor))


def row_digests(tensor: Tensor) -> list[bytes]:
    """Of each row along the first dimension: XXH3, or :func:`row_sums` on a GPU, whose values need not leave it."""
    if tensor.is_cuda:
        return _as_bytes(row_sums(tensor))
    rows = len(tensor)
    values = _bytes(tensor)
    size = len(values) // rows if rows else 0
    return [xxhash.xxh3_128_digest(values[row * size : (row + 1) * size]) for row in range(rows)]


def row_sums(tensor: Tensor) -> Tensor:
    """``[rows, 2]``: two 64-bit sums of each row's bits, weighted by odd random numbers modulo 2^64.

    Two rows that differ have the same sums with a chance of 2^-128 or little more; of 2^-66 at worst, where they differ
    in the highest bit of single words alone.
    """
    rows = len(tensor)
    if not rows:
        return torch.zeros(0, 2, dtype=torch.int64, device=tensor.device)
    bits = _flat(tensor).view(torch.uint8).view(rows, -1)
    words = bits.view(torch.int32) if bits.shape[1] % 4 == 0 and bits.data_ptr() % 4 == 0 else bits.int()
    # Numbers such as 1.0 and 2.0 differ in high bits alone, which products push out.
    words = words ^ ((words >> 16) & 0xFFFF)
    blocks = -(-words.shape[1] // _BLOCK)
    words = torch.nn.functional.pad(words, (0, blocks * _BLOCK - words.shape[1])).view(rows, blocks, _BLOCK)
    sums = []
    for number in range(2):
        inner = (words * _weights(_BLOCK, number, tensor.device)).sum(-1)
        inner = inner ^ ((inner >> 32) & 0xFFFFFFFF)
        sums.append((inner * _weights(blocks, 2 + number, tensor.device)).sum(-1))
    return torch.stack(sums, 1)


@functools.lru_cache(64)
def _weights(count: int, seed: int, device: torch.device) -> Tensor:
    """Odd numbers, the same in every run: files of an earlier one are to be found again."""
    drawn = torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(97 + seed))
    return (drawn | 1).to(device)


def _as_bytes(sums: Tensor) -> list[bytes]:
    values = sums.cpu().contiguous().view(torch.uint8).numpy()
    return [row.tobytes() for row in values]


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
