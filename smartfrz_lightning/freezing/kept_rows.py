"""KeptRows: what a module gave, a row a sample, in memory and, if wanted, in files for later runs."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smartfrz_lightning.freezing.sample_keys import KEY_BYTES, digest, joined

_CHUNK = 1 << 20
_BOOKKEEPING = 200
"""Bytes that Python takes for the keys of a row."""


@dataclass
class Budget:
    """Bytes that all rows share.

    Attributes:
        free: That are left.
        taken: That rows take, without those of chunks that are not full.
        full: Not all rows had room.
        problem: Why no more files are written.
    """

    free: int
    taken: int = 0
    full: bool = False
    problem: str = ""


class KeptRows:
    """Rows of one or several outputs of one shape each.

    Args:
        outputs: What was given for a batch: types, devices and shapes.
        budget: What it may take.
        dtype: Keep floating-point values in this type; in their own if ``None``.
        folder: Read and write files here.
        name: Of the files.
    """

    def __init__(
        self,
        outputs: Sequence[Tensor],
        budget: Budget,
        dtype: torch.dtype | None = None,
        folder: Path | None = None,
        name: str = "",
    ) -> None:
        self._kinds = [out.dtype for out in outputs]
        rows = [_as_rows(out) for out in outputs]
        self._last = [bool(row.shape != out.shape) for row, out in zip(rows, outputs, strict=True)]
        self._like = [row[:0].to(dtype) if dtype and row.is_floating_point() else row[:0].contiguous() for row in rows]
        self._size = sum(math.prod(row.shape[1:]) * row.element_size() for row in self._like) + _BOOKKEEPING
        self._per_chunk = max(1, min(_CHUNK, budget.free // 20) // self._size)
        self._chunks: list[list[Tensor]] = []
        self._place: dict[bytes, int] = {}
        self._budget, self._folder, self._name = budget, folder, f"{name}-{dtype or 'own'}"
        self._saved = 0
        self.used = True
        """Whether rows were looked for since this was set to ``False``."""
        if folder is not None:
            self._read_files(folder)

    def find(self, keys: Sequence[bytes]) -> list[int] | None:
        """Where the rows of a batch are, if all of them are known."""
        self.used = True
        places = [self._place.get(key, -1) for key in keys]
        return None if -1 in places else places

    def read(self, places: Sequence[int]) -> list[Tensor]:
        """The outputs of a batch."""
        where = [divmod(place, self._per_chunk) for place in places]
        rows = [torch.stack([self._chunks[c][slot][r] for c, r in where]) for slot in range(len(self._kinds))]
        outputs = [row.to(kind) for row, kind in zip(rows, self._kinds, strict=True)]
        return [out.movedim(-1, 1) if last else out for out, last in zip(outputs, self._last, strict=True)]

    def put(self, keys: Sequence[bytes], outputs: Sequence[Tensor]) -> int:
        """Keep the rows of a batch, as far as there is room; returns how many were not known."""
        new = sum(key not in self._place for key in keys)
        rows = [_as_rows(out) for out in outputs]
        kept = [row.to(like.dtype) for row, like in zip(rows, self._like, strict=True)]
        lowered = [(low, row) for low, row in zip(kept, rows, strict=True) if low.dtype != row.dtype]
        if any(bool((low.isinf() & row.isfinite()).any()) for low, row in lowered):
            return new  # beyond the range of the smaller type
        self._add(keys, kept)
        return new

    def _add(self, keys: Sequence[bytes], rows: Sequence[Tensor]) -> None:
        for number, key in enumerate(keys):
            if key in self._place:
                continue
            chunk, at = divmod(len(self._place), self._per_chunk)
            if chunk == len(self._chunks):
                if self._budget.free < self._per_chunk * self._size:
                    self._budget.full = True
                    return
                self._budget.free -= self._per_chunk * self._size
                self._chunks.append([like.new_empty(self._per_chunk, *like.shape[1:]) for like in self._like])
            for to, row in zip(self._chunks[chunk], rows, strict=True):
                to[at].copy_(row[number])
            self._place[key] = len(self._place)
            self._budget.taken += self._size

    def drop(self) -> None:
        """Give the memory back."""
        self._budget.free += len(self._chunks) * self._per_chunk * self._size
        self._budget.taken -= len(self._place) * self._size
        self._chunks.clear()
        self._place.clear()
        self._saved = 0

    # --- files

    def save(self) -> None:
        """Write what is new into one file more, which is there whole or not at all."""
        keys = list(self._place)[self._saved :]
        if self._folder is None or not keys:
            return
        where = [divmod(self._saved + number, self._per_chunk) for number in range(len(keys))]
        self._saved += len(keys)
        rows = {
            str(slot): torch.stack([self._chunks[c][slot][r] for c, r in where]).cpu()
            for slot in range(len(self._like))
        }
        rows["keys"] = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1)
        partial = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as file:
                partial = Path(file.name)
            save_file(rows, partial, {"sum": _checksum(rows)})
            partial.rename(self._folder / f"{self._name}-{partial.stem}.safetensors")
        except (OSError, SafetensorError) as error:  # a full disk: the rows stay in memory
            self._budget.problem, self._folder = str(error), None
            if partial is not None:
                partial.unlink(missing_ok=True)

    def _read_files(self, folder: Path) -> None:
        for path in sorted(folder.glob(f"{self._name}-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    whole = (file.metadata() or {}).get("sum") == _checksum(rows)
            except (OSError, SafetensorError):  # cut short, or being written by somebody who was killed
                continue
            values = [rows.get(str(slot)) for slot in range(len(self._like))]
            fits = all(
                v is not None and v.shape[1:] == like.shape[1:] for v, like in zip(values, self._like, strict=True)
            )
            if whole and fits:
                keys = rows["keys"].numpy().tobytes()
                self._add([keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)], values)  # type: ignore[arg-type]
        self._saved = len(self._place)


def _as_rows(out: Tensor) -> Tensor:
    """With the channels last where they are so in memory, so that a row is in one piece."""
    last = out.ndim == 4 and not out.is_contiguous() and out.is_contiguous(memory_format=torch.channels_last)
    return out.detach().movedim(1, -1) if last else out.detach()


def _checksum(rows: dict[str, Tensor]) -> str:
    return joined([digest(rows[name]) for name in sorted(rows)]).hex()
