"""SampleRows: which samples a batch has, by what enters the front, and how many of their rows were known."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from smartfrz_lightning.freezing.sample_keys import digest, joined, row_digests


@dataclass(eq=False)
class Leaf:
    """A tensor that enters the front.

    Attributes:
        tensor: The tensor.
        copy: Its values as they were when it entered, once they are needed later.
        by_sample: Whether its rows are those of samples.
        keys: One a row, or one.
    """

    tensor: Tensor
    by_sample: bool
    keys: list[bytes]
    copy: Tensor | None = None


class SampleRows:
    """The samples of one batch after the other, told apart by the content of what enters the front.

    Attributes:
        batch: The number of the batch.
        seen: Keys of samples of earlier batches.
        memo: Rows that were computed since something was asked for from outside, by the call that gave them.
    """

    def __init__(self) -> None:
        self.batch = 0
        self.seen: set[bytes] = set()
        self.memo: dict[tuple[Hashable, tuple[int, ...]], list[Tensor]] = {}
        self._samples = 0
        self._leaves: dict[int, Leaf] = {}
        self._entered: list[Leaf] = []
        self._keys: dict[tuple[Leaf, ...], list[bytes]] = {}
        self._looked_up: dict[Hashable, tuple[int, int]] = {}  # known and all rows, by output

    def open(self) -> None:
        """A batch begins."""
        self.batch += 1

    def close(self) -> tuple[int, int] | None:
        """The batch is over: for how many samples all was known, and of how many; ``None`` if nothing was looked up."""
        found = min(self._looked_up.values()) if self._looked_up else None
        if found:
            self.seen.update(key for leaf in self._entered if leaf.by_sample for key in leaf.keys)
        for of_this_batch in (self._leaves, self._entered, self._keys, self._looked_up, self.memo):
            of_this_batch.clear()
        self._samples = 0
        return found

    def note(self, output: Hashable, known: int, rows: int) -> None:
        """So many rows of an output were looked up, and so many of them were known."""
        self._looked_up[output] = (known, rows)
        self.memo.clear()

    def samples_in(self, inputs: Sequence[Tensor]) -> int:
        """Samples of the batch, by the first tensor that entered."""
        if not self._samples:
            first = next((t for t in inputs if t.ndim and not isinstance(t, nn.Parameter)), None)
            self._samples = len(first) if first is not None else 1
        return self._samples

    @staticmethod
    def by_sample(tensor: Tensor, samples: int) -> bool:
        """Whether a tensor has a row for each sample."""
        return tensor.ndim > 0 and len(tensor) == samples and not isinstance(tensor, nn.Parameter)

    def leaf(self, tensor: Tensor, samples: int) -> Leaf:
        """A tensor that enters the front, with the keys of its samples."""
        # Every time: what is written through ``.data`` does not show otherwise.
        by_sample = self.by_sample(tensor, samples)
        keys = row_digests(tensor) if by_sample else [digest(tensor)]
        known = self._leaves.get(id(tensor))
        if known is None or known.tensor is not tensor or known.keys != keys:
            known = self._leaves[id(tensor)] = Leaf(tensor, by_sample, keys)
            self._entered.append(known)
        return known

    def keys(self, leaves: Sequence[Leaf], samples: int) -> list[bytes]:
        """One a sample, of all tensors that entered."""
        which = tuple(leaves)
        if which not in self._keys:
            by_row = [leaf.keys if leaf.by_sample else leaf.keys * samples for leaf in leaves]
            self._keys[which] = [joined(list(row)) for row in zip(*by_row, strict=True)]
        return self._keys[which]
