"""Recorded histories as training data for the predictor."""

from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smartfrz_lightning.history.recording import Recording, check_recordings
from smartfrz_lightning.predictor.labels import stable_range_labels


class WindowDataset(Dataset):
    """One item for each labelled check of each layer: its window, the label, and where it comes from.

    Items are dicts: ``window`` ``[window, sample_size]`` oldest first and padded at the end, ``length``, ``label``
    (1 freeze, 0 train on), ``network`` and ``instant`` (numbers of the network and of the run's check).

    Args:
        recordings: The runs.
        networks: All network names; ``network`` counts in this list.
        window: Snapshots a window.
        epsilon: See ``stable_range_labels``.
    """

    def __init__(self, recordings: list[Recording], networks: list[str], window: int, epsilon: float) -> None:
        self.window = window
        self._runs = recordings
        self._items: list[tuple[int, int, int, int, int, int]] = []
        instant = 0
        for run, recording in enumerate(recordings):
            labels = stable_range_labels(recording, epsilon)
            for check, step in enumerate(recording.check_step.tolist()):
                end = int((recording.snapshot_step <= step).sum())
                if end < 2 or (labels[check] < 0).all():
                    continue
                for layer, label in enumerate(labels[check].tolist()):
                    self._items.append((run, end, layer, label, networks.index(recording.network), instant))
                instant += 1

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        run, end, layer, label, network, instant = self._items[index]
        snapshots = self._runs[run].snapshots[max(0, end - self.window) : end, layer]
        padded = snapshots.new_zeros(self.window, snapshots.shape[-1])
        padded[: len(snapshots)] = snapshots
        return {
            "window": padded,
            "length": len(snapshots),
            "label": label,
            "network": network,
            "instant": instant,
        }

    @property
    def labels(self) -> Tensor:
        """The label of every item."""
        return torch.tensor([item[3] for item in self._items])


class RecordingsDataModule(LightningDataModule):
    """Windows from recordings, split by network.

    Args:
        recordings: Recording files, or folders of them.
        held_out: Networks for validation alone; with none, everything is trained on and validated on itself.
        window: Snapshots a window.
        epsilon: Range of CKA over an epoch below which a layer counts as ready.
        batch_size: Windows a batch.

    Raises:
        FileNotFoundError: A file is missing, or a folder has no recording.
        ValueError: A recording is damaged, sample sizes differ, or a held-out network is in no recording.
    """

    def __init__(
        self,
        recordings: list[str],
        held_out: list[str] | None = None,
        window: int = 30,
        epsilon: float = 0.01,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window={window}: must be at least 1; the paper takes 30")
        self.window, self.epsilon, self.batch_size = window, epsilon, batch_size
        self.held_out = held_out or []
        files: list[Path] = []
        for path in map(Path, recordings):
            found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
            if not found:
                raise FileNotFoundError(f"recordings={str(path)!r}: no *.safetensors in this folder")
            files += found
        loaded = {str(path): Recording.load(path) for path in files}
        self.sample_size = check_recordings(loaded)
        self.runs = list(loaded.values())
        self.networks = sorted({run.network for run in self.runs})
        if unknown := set(self.held_out) - set(self.networks):
            raise ValueError(f"held_out={sorted(unknown)}: the recordings are of {self.networks}")
        if not set(self.networks) - set(self.held_out):
            raise ValueError(f"held_out={self.held_out} leaves no network to train on: record another one")

    def setup(self, stage: str) -> None:
        kept = [run for run in self.runs if run.network not in self.held_out]
        held = [run for run in self.runs if run.network in self.held_out] or kept
        self.train = WindowDataset(kept, self.networks, self.window, self.epsilon)
        self.val = WindowDataset(held, self.networks, self.window, self.epsilon)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 512)
