"""SampleStore: rows of a tensor, kept by the key of their sample, in memory or in a file."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_CHUNK = 1 << 26  # bytes of address space that are asked for at a time


class Budget:
    """Bytes that several stores share."""

    def __init__(self, size: int) -> None:
        self.size = self.free = size

    def take(self, size: int) -> bool:
        """Take some, if they are left."""
        if size > self.free:
            return False
        self.free -= size
        return True

    def give_back(self, size: int) -> None:
        """They are free again."""
        self.free += size


class SampleStore:
    """Keep rows of one shape.

    A file is this store's alone while it is written; :meth:`close` leaves an index beside it, with a checksum of every
    row, by which later stores of the same name find it. What they find, and what another process writes at the same
    time into the same folder, is only read.

    Args:
        shape: Of a row.
        dtype: Of the values as they are kept.
        budget: What it may take.
        folder: Where the file goes; memory if ``None``.
        name: What the rows are rows of, for later stores; a file name.
    """

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, budget: Budget, folder: Path | None = None, name: str = ""
    ) -> None:
        self.shape, self.dtype, self.budget = tuple(shape), dtype, budget
        self._row = max(1, int(np.prod(self.shape))) * dtype.itemsize
        self._per_chunk = max(1, _CHUNK // self._row)
        self._where: dict[bytes, Tensor] = {}
        self._chunks: list[Tensor] = []
        self._written = 0
        self._folder, self._name = folder, name
        self._file = -1
        self._path: Path | None = None
        self._own: list[bytes] = []
        self._sums: list[int] = []
        self._found: dict[bytes, int] = {}  # checksums of rows that an earlier store left, not yet looked at
        self.used = True
        """Rows were looked for since this was set to ``False``."""
        self.full = False
        """No row fits any more."""
        self.problem = ""
        """Why, if not by its budget."""
        with contextlib.suppress(OSError):  # a folder that cannot be read
            self._find_earlier()

    def __contains__(self, key: bytes) -> bool:
        self.used = True
        if key in self._found:
            expected, row = self._found.pop(key), self._where[key]
            if xxhash.xxh3_64_intdigest(_view(row)) != expected:
                del self._where[key]  # damaged: it is made again
        return key in self._where

    def keys(self) -> list[bytes]:
        """Whose rows are kept."""
        return list(self._where)

    def row(self, key: bytes) -> Tensor:
        """The row of a sample, not to be changed."""
        return self._where[key]

    def put(self, keys: Sequence[bytes], rows: Tensor) -> int:
        """Keep rows that are not kept yet, as far as there is room; returns how many were."""
        kept = 0
        rows = rows.detach().to("cpu", self.dtype)
        for key, row in zip(keys, rows, strict=True):
            if self.full or key in self._where:
                continue
            place = self._place()
            if place is None:
                continue
            row = row.reshape(self.shape).contiguous()
            if self._file >= 0:
                values = _view(row)
                try:
                    os.pwrite(self._file, values, self._written * self._row)
                except OSError as error:
                    self._stop(str(error))
                    continue
                self._sums.append(xxhash.xxh3_64_intdigest(values))
            else:
                place.copy_(row)
            self._where[key] = place
            self._own.append(key)
            self._written += 1
            kept += 1
        return kept

    def _place(self) -> Tensor | None:
        if not self.budget.take(self._row):
            self.full = True
            return None
        at, within = divmod(self._written, self._per_chunk)
        try:
            if at == len(self._chunks):
                self._chunks.append(self._chunk(at))
        except (OSError, RuntimeError) as error:  # no room, or no memory
            self.budget.give_back(self._row)
            self._stop(str(error))
            return None
        return self._chunks[at][within]

    def _chunk(self, number: int) -> Tensor:
        rows = self._per_chunk  # neither memory nor file take more room than what is written
        if self._folder is None:
            return torch.empty((rows, *self.shape), dtype=self.dtype)
        if self._file < 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file, path = tempfile.mkstemp(".rows", f"{self._name}-", self._folder)
            self._path = Path(path)
        start = number * self._per_chunk * self._row
        os.ftruncate(self._file, start + rows * self._row)  # sparse until it is written
        return self._mapped(Path(self._path or ""), "r+", start, rows)

    def _mapped(self, path: Path, mode: Literal["r+", "c"], start: int, rows: int) -> Tensor:
        values = np.memmap(path, np.uint8, mode, start, (rows * self._row,))
        return torch.from_numpy(values).view(self.dtype).view(rows, *self.shape)

    def _stop(self, problem: str) -> None:
        self.full, self.problem = True, problem

    def _find_earlier(self) -> None:
        folder = self._folder
        if folder is None or not folder.is_dir():
            return
        for index in sorted(folder.glob(f"{self._name}-*.index")):
            path = index.with_suffix(".rows")
            with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError, RuntimeError):
                state = load_file(index)
                keys, sums = state["keys"].numpy(), state["sums"].tolist()
                if not len(keys) or path.stat().st_size < len(keys) * self._row:
                    continue
                rows = self._mapped(path, "c", 0, len(keys))
                for key, total, row in zip(keys, sums, rows, strict=True):
                    self._where.setdefault(key.tobytes(), row)
                    self._found[key.tobytes()] = total % 2**64

    def flush(self) -> None:
        """Leave an index of what is written until now; later stores find it."""
        if self._path is None or not self._written:
            return
        keys = torch.from_numpy(np.frombuffer(b"".join(self._own), np.uint8).copy()).view(len(self._own), -1)
        sums = torch.from_numpy(np.array(self._sums, np.uint64).view(np.int64).copy())
        partial = self._path.with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk: the rows are lost, nothing else
            save_file({"keys": keys, "sums": sums}, partial)
            partial.replace(self._path.with_suffix(".index"))

    def close(self, keep: bool = True) -> None:
        """Give memory and file handles back; what is in a file stays, with its index, if it is to be kept."""
        if keep:
            self.flush()
        if self._file >= 0:
            os.ftruncate(self._file, self._written * self._row)
            os.close(self._file)
            self._file = -1
        if self._path is not None and not (keep and self._written):
            for suffix in (".rows", ".index"):
                self._path.with_suffix(suffix).unlink(missing_ok=True)
        self._path = None
        self._where.clear()
        self._found.clear()
        self._chunks.clear()
        self.budget.give_back(self._written * self._row)
        self._written, self.full = 0, True


def _view(row: Tensor) -> memoryview:
    return row.contiguous().view(-1).view(torch.uint8).numpy().data
