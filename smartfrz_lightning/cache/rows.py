"""Rows: what a call gave, a row a sample, in memory and, if wanted, in files for later runs."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_KEY = 16  # bytes of a key
_BOOKKEEPING = 250  # bytes that Python takes for the key and the place of a row


def digest(*contents: Tensor | bytes) -> bytes:
    """XXH3 of all values of tensors, and of bytes: 16 bytes."""
    whole = xxhash.xxh3_128()
    for content in contents:
        whole.update(_bytes(content) if isinstance(content, Tensor) else content)
    return whole.digest()


def row_digests(tensor: Tensor) -> list[bytes]:
    """XXH3 of each row along the first dimension."""
    values, rows = _bytes(tensor), len(tensor)
    size = len(values) // max(1, rows)
    return [xxhash.xxh3_128_digest(values[row * size : (row + 1) * size]) for row in range(rows)]


def _bytes(tensor: Tensor) -> memoryview:
    values = tensor.detach().cpu().contiguous().reshape(-1)
    if values.numel() and values.stride(0) != 1:  # a single value counts as contiguous whatever its stride
        values = values.new_empty(values.numel()).copy_(values)
    return values.view(torch.uint8).numpy().data


@dataclass
class Budget:
    """Bytes that all rows may take and take, whether not all had room, and why no more files are written."""

    limit: int
    taken: int = 0
    full: bool = False
    problem: str = ""


class Rows:
    """Rows of one or several outputs, a chunk of them a batch.

    Args:
        budget: What they may take.
        folder: Read and write files here.
        name: Of the files.
        device: Where they are kept.
    """

    def __init__(self, budget: Budget, folder: Path | None, name: str, device: torch.device) -> None:
        self._budget, self._folder, self._name, self._device = budget, folder, name, device
        self._chunks: list[list[Tensor]] = []
        self.place: dict[bytes, tuple[int, int]] = {}
        self._taken = self._saved = 0
        self.used = True  # looked for since this was set to ``False``
        if folder is not None:
            self._read_files(folder)

    def find(self, keys: Sequence[bytes]) -> list[tuple[int, int]] | None:
        """Where the rows of a batch are, if all of them are known."""
        self.used = True
        places = [self.place[key] for key in keys if key in self.place]
        return places if len(places) == len(keys) else None

    def read(self, places: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Those of a batch."""
        slots = range(len(self._chunks[places[0][0]]))
        return [torch.stack([self._chunks[chunk][slot][row] for chunk, row in places]) for slot in slots]

    def put(self, keys: Sequence[bytes], rows: Sequence[Tensor]) -> None:
        """Keep those of a batch that are not known, if there is room for them."""
        new = {key: number for number, key in enumerate(keys) if key not in self.place}
        chunk = [values.detach()[list(new.values())].contiguous() for values in rows]
        size = sum(values.nbytes for values in chunk) + _BOOKKEEPING * len(new)
        if self._budget.taken + size > self._budget.limit:
            self._budget.full = True
        elif new:
            self._budget.taken += size
            self._taken += size
            self.place |= {key: (len(self._chunks), number) for number, key in enumerate(new)}
            self._chunks.append(chunk)

    def drop(self) -> None:
        """Give the memory back."""
        self._budget.taken -= self._taken
        self._taken = self._saved = 0
        self._chunks.clear()
        self.place.clear()

    def save(self) -> None:
        """Write what is new into one file more, which is there whole or not at all."""
        new = self._chunks[self._saved :]
        if self._folder is None or not new:
            return
        rows = {str(slot): torch.cat(values).cpu() for slot, values in enumerate(zip(*new, strict=True))}
        keys = b"".join(key for key, (chunk, _) in self.place.items() if chunk >= self._saved)
        rows["keys"] = torch.frombuffer(bytearray(keys), dtype=torch.uint8).view(-1, _KEY)
        self._saved, partial = len(self._chunks), None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as file:
                partial = Path(file.name)
            save_file(rows, partial, {"sum": checksum(rows)})
            partial.rename(self._folder / f"{self._name}-{partial.stem}.safetensors")
        except (OSError, SafetensorError) as error:  # a full disk: the rows stay in memory
            self._budget.problem, self._folder = f"nothing more is written to {self._folder}: {error}", None
            if partial is not None:
                partial.unlink(missing_ok=True)

    def _read_files(self, folder: Path) -> None:
        for path in sorted(folder.glob(f"{self._name}-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    whole = (file.metadata() or {}).get("sum") == checksum(rows)
            except (OSError, SafetensorError):  # cut short, or being written by somebody who was killed
                continue
            if whole:
                keys = rows.pop("keys").numpy().tobytes()
                values = [rows[str(slot)].to(self._device) for slot in range(len(rows))]
                self.put([keys[at : at + _KEY] for at in range(0, len(keys), _KEY)], values)
        self._saved = len(self._chunks)


def checksum(rows: dict[str, Tensor]) -> str:
    """Of all values in a file."""
    return digest(*(rows[name] for name in sorted(rows))).hex()
