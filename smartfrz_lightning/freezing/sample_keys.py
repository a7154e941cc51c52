"""What tells samples apart: a digest of their content."""

import torch
import xxhash
from torch import Tensor


def digest(tensor: Tensor) -> bytes:
    """Of all values of a tensor, 16 bytes (XXH3).

    Example:
        >>> import torch
        >>> from smartfrz_lightning.freezing.sample_keys import digest
        >>> digest(torch.ones(3)) == digest(torch.ones(3)), digest(torch.ones(3)) == digest(torch.zeros(3))
        (True, False)
    """
    return xxhash.xxh3_128_digest(_bytes(tensor))


def row_digests(tensor: Tensor) -> list[bytes]:
    """Of each row along the first dimension.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.freezing.sample_keys import digest, row_digests
        >>> row_digests(torch.eye(2)) == [digest(torch.tensor([1.0, 0.0])), digest(torch.tensor([0.0, 1.0]))]
        True
    """
    rows = len(tensor)
    values = _bytes(tensor)
    size = len(values) // rows if rows else 0
    return [xxhash.xxh3_128_digest(values[row * size : (row + 1) * size]) for row in range(rows)]


def joined(digests: list[bytes]) -> bytes:
    """One digest of several.

    Example:
        >>> from smartfrz_lightning.freezing.sample_keys import joined
        >>> joined([b"a"]), len(joined([b"a", b"b"]))
        (b'a', 16)
    """
    return digests[0] if len(digests) == 1 else xxhash.xxh3_128_digest(b"".join(digests))


def _bytes(tensor: Tensor) -> memoryview:
    values = tensor.detach().cpu().contiguous().reshape(-1)
    return values.view(torch.uint8).numpy().data
