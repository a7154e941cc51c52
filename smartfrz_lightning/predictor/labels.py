"""From CKA to the label freeze / train on."""

import torch
from torch import Tensor

from smartfrz_lightning.history.recording import Recording


def stable_range_labels(recording: Recording, epsilon: float = 0.01) -> Tensor:
    """Label the checks of a recording: 1 where a layer's CKA has stabilised.

    The rule: over the checks of the last epoch, this one included, the CKA of the layer's output to the finished
    reference has a range (largest minus smallest) below ``epsilon`` (paper, section 3.4). Checks in the first epoch
    have no full epoch behind them and are labelled -1, "unknown", as is a check that is the only one of its epoch.

    Args:
        recording: The recording.
        epsilon: The largest range that counts as stable.

    Returns:
        ``[checks, layers]``, ``int64``, of 1, 0 and -1.
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
