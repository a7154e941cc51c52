"""What prefixes came to that were frozen from the first step to the last, by what the later predictor says of them."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from research.outcomes.branches import MARGIN, start_loss
from smartfrz_lightning.predictor.later import LaterPredictor, later_inputs
from smartfrz_lightning.stages.later import CHECKS, EARLIEST
from smartfrz_lightning.stages.start import DEEPEST

SHOWN = ("p(safe) after two fifths", "prefixes", "points", "worst", "cost at most 1 point")


def from_the_start(path: Path, shortest: int = 400) -> list[list[str]]:
    """What prefixes came to that were frozen from the first step to the last, by the shipped p(safe) after two fifths.

    Args:
        path: File of recorded runs.
        shortest: Steps that a run has to have.
    """
    predictor, check, found = LaterPredictor.load(), round(EARLIEST * CHECKS) - 1, []
    for case in (json.loads(line) for line in path.read_text().splitlines()):
        layers, full = len(case["layers"]) - 1, case["runs"][0]["accuracy"]
        for run, losses in zip(case["runs"], case["losses"], strict=True):
            if run["kind"] == "frozen" and not run["moment"] and run["depth"] <= DEEPEST * layers:
                inputs = later_inputs(layers, EARLIEST, losses[check] / start_loss(case))
                with torch.no_grad():
                    safe = float(predictor(inputs)[: run["depth"]].min().sigmoid())
                found += [(safe, run["accuracy"] - full)] if case["case"]["steps"] >= shortest else []
    rows = []
    for low, high in pairwise((0.0, 0.6, 0.7, 0.85, 1.01)):
        points = np.array([gain for safe, gain in found if low <= safe < high])
        share = f"{(points >= -MARGIN).mean():.0%}"
        rows.append(
            [f"{low:g} to {min(high, 1):g}", str(len(points)), f"{points.mean():+.1f}", f"{points.min():+.1f}", share]
        )
    return rows
