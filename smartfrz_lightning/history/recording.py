"""A recording: the weight history of one training run, and how alike each layer was to a finished reference."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from smartfrz_lightning.history.tensor_file import read_tensors, write_tensors

FORMAT = "smartfrz-recording"
VERSION = 1


@dataclass
class Recording:
    """One run: ``N`` snapshots and ``C`` checks of ``L`` layers in forward order.

    On disk it is one safetensors file: the tensors under their names here, everything else as JSON under ``smartfrz``
    in the file's metadata. Nothing is pickled.

    Attributes:
        snapshots: ``[N, L, sample_size]`` sampled weights, float32.
        snapshot_step: ``[N]`` optimizer step of each snapshot.
        check_step: ``[C]`` optimizer step of each check.
        check_epoch: ``[C]`` epochs done, with fraction.
        cka: ``[C, L]`` CKA of each layer's output to that of the reference on the probe.
        network: Name of the architecture; the split for held-out networks goes by it.
        layers: Names of the layers.
        settings: Seed, spacing, versions and the like.
    """

    snapshots: Tensor
    snapshot_step: Tensor
    check_step: Tensor
    check_epoch: Tensor
    cka: Tensor
    network: str
    layers: list[str]
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the file in one piece: it is there whole or not at all."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.type is Tensor}
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in tensors}
        write_tensors(path, tensors, {"format": FORMAT, "version": VERSION, **rest})

    @classmethod
    def load(cls, path: str | Path) -> "Recording":
        """Read a file; ``ValueError`` if it is cut short, or of another format or version."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no recording at {str(path)!r}: make one with HistoryRecorder(path=...)")
        tensors, header = read_tensors(path)
        if header.pop("format", None) != FORMAT:
            raise ValueError(f"{str(path)!r} is not a recording of HistoryRecorder")
        if (version := header.pop("version", None)) != VERSION:
            raise ValueError(f"{str(path)!r} is a recording of version {version}, this is {VERSION}: record it again")
        known = [one.name for one in fields(cls)]  # older files have more
        return cls(**{name: value for name, value in {**tensors, **header}.items() if name in known})
