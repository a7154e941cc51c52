"""Recorded histories as training data for the predictor."""

from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smartfrz_lightning.history.recording import Recording


class WindowDataset(Dataset):
    """One item for each labelled check of each layer: its window, the label, and where it comes from.

    Items are dicts: ``window`` ``[window, sample_size]`` oldest first and padded at the end, ``length``, ``label``
    (1 freeze, 0 train on), ``network`` and ``instant`` (numbers of the network in ``networks``, of the run's check).
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
        return {"window": padded, "length": len(snapshots), "label": label, "network": network, "instant": instant}

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
            files += [file for file in found if file not in files]
        if not files:
            raise ValueError("recordings: no file given; make some with HistoryRecorder")
        self.runs = [Recording.load(path) for path in files]
        sizes = {str(path): run.snapshots.shape[-1] for path, run in zip(files, self.runs, strict=True)}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"recordings of different sample sizes cannot train one predictor: {sizes}")
        self.sample_size = self.runs[0].snapshots.shape[-1]
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


def stable_range_labels(recording: Recording, epsilon: float = 0.01) -> Tensor:
    """Label the checks of a recording: 1 where a layer's CKA has stabilised.

    The rule: over the checks of the last epoch, this one included, the CKA of the layer's output to the finished
    reference has a range (largest minus smallest) below ``epsilon`` (paper, section 3.4). Checks in the first epoch
    have no full epoch behind them and are labelled -1, "unknown", as is a check that is the only one of its epoch.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon}: must be above 0; 0.01 is the default")
    epochs = recording.check_epoch
    labels = torch.full(recording.cka.shape, -1, dtype=torch.long)
    for check, now in enumerate(epochs.tolist()):
        if now < 1 - 1e-6:
            continue
        values = recording.cka[: check + 1][epochs[: check + 1] >= now - 1 - 1e-6]
        if len(values) > 1:
            labels[check] = (values.amax(0) - values.amin(0) < epsilon).long()
    return labels
