"""How good a predictor's confidences are."""

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryAveragePrecision
from torchmetrics.functional.classification import binary_auroc


class PredictorScores(nn.Module):
    """AUROC, average precision and accuracy over all windows, and AUROC within one instant.

    *Within one instant* asks whether the layers of one network are ranked rightly at one check: the mean of the AUROC
    over all checks at which both labels occur (0.5 where there is none). Elapsed time alone scores 0.5 there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._metrics = MetricCollection(
            {"auroc": BinaryAUROC(), "average_precision": BinaryAveragePrecision(), "accuracy": BinaryAccuracy()},
            compute_groups=False,
        )
        self.reset()

    def update(self, confidence: Tensor, label: Tensor, instant: Tensor) -> None:
        """Add windows: confidence to freeze, label and number of the check, ``[windows]`` each."""
        if not len(confidence):
            return
        self._metrics.update(confidence, label)
        self._seen.append((confidence.cpu(), label.cpu(), instant.cpu()))

    def compute(self) -> dict[str, Tensor]:
        """All scores; of no windows at all, as from chance."""
        if not self._seen:
            return {
                **dict.fromkeys(("auroc", "accuracy", "auroc_within_instant"), torch.tensor(0.5)),
                "average_precision": torch.tensor(0.0),
            }
        scores: dict[str, Tensor] = self._metrics.compute()
        confidence, label, instant = (torch.cat(part) for part in zip(*self._seen, strict=True))
        ranked = []
        for moment in instant.unique():
            at = instant == moment
            if 0 < label[at].sum() < at.sum():
                ranked.append(binary_auroc(confidence[at], label[at]))
        scores["auroc_within_instant"] = torch.stack(ranked).mean() if ranked else torch.tensor(0.5)
        return scores

    def reset(self) -> None:
        """Forget everything."""
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._metrics.reset()
