"""What freezing prefixes at several moments came to in recorded runs, and a summary of each run for the repository.

    python -m research.outcomes.moments research/results/moments.jsonl
    python -m research.outcomes.moments runs/outcomes --write research/results/moments.jsonl

Needs the extra ``benchmark``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from research.outcomes.examples import frontier
from research.outcomes.outcome import Outcome
from research.outcomes.training import learning_rate
from smartfrz_lightning.stages.later import CHECKS


def summary(outcome: Outcome) -> dict[str, Any]:
    """A case without its tensors: what the layers before the head showed at each twentieth of the run, layer by layer.

    ``moved``: how far the sampled weights are from those a twentieth before, relative to their norm. ``gradient``: root
    mean square norm of the gradients since then, relative to the weights; ``agreement``: square norm of their mean over
    their mean square. ``rates``: sum of the learning rates since then. ``first_loss``: training loss of the first
    batch. ``losses``: that of every run in each twentieth, ``None`` where it was not trained.

    Args:
        outcome: The case, with its tensors.
    """
    tensors, layers, steps = outcome.tensors, len(outcome.layers) - 1, outcome.case.steps
    at, weights = tensors["weights_step"], tensors["weights"][:, :layers].double()
    gradients = tensors["gradients"][:, :layers].double()
    rates = torch.tensor([learning_rate(outcome.case, step, steps) for step in range(steps)], dtype=torch.double)
    found: dict[str, list] = {name: [] for name in ("moved", "gradient", "agreement", "rates")}
    before = 0
    for check in range(1, CHECKS + 1):
        until = int((at <= round(check * steps / CHECKS)).sum()) - 1
        scale = weights[until].norm(dim=-1).clamp(min=1e-9)
        window = gradients[before + 1 : until + 1]  # the first gradient is that of step 1
        squares = window.square().sum(-1).mean(0)
        found["moved"].append((weights[until] - weights[before]).norm(dim=-1) / scale)
        found["gradient"].append(squares.sqrt() / scale)
        found["agreement"].append(window.mean(0).square().sum(-1) / squares.clamp(min=1e-18))
        found["rates"].append(rates[at[before] : at[until]].sum())
        before = until
    checks = {name: [_rounded(row) for row in rows] for name, rows in found.items()}
    parts = [run.tensor_split(CHECKS) for run in tensors["losses"]]
    losses = [[None if part.isnan().all() else round(float(part.nanmean()), 4) for part in run] for run in parts]
    first = float(tensors["losses"][0][0])
    return {**outcome.asdict(), "checks": checks, "losses": losses, "first_loss": round(first, 4)}


def _rounded(values: Tensor) -> Any:
    kept = [float(f"{value:.4g}") for value in values.flatten().tolist()]
    return kept if values.ndim else kept[0]


COSTS = ("frozen from", "0–30 % of the layers", "30–50 %", "50–70 %", "70–90 %", "all but the head")
_EDGES = (0, 0.3, 0.5, 0.7, 0.9, 1.01)


def costs(recorded: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Points that freezing cost, a row a moment; in brackets those above training that was shortened to as much."""
    found = []
    for outcome in map(Outcome.fromdict, map(dict, recorded)):
        for run in (run for run in outcome.runs if run.kind == "frozen"):
            above = run.accuracy - frontier(outcome, outcome.cost(run))
            share = run.moment / outcome.case.steps, run.depth / (len(outcome.layers) - 1)
            found.append((*share, run.accuracy - outcome.full.accuracy, above))
    moment, depth, *gains = np.array(found).T
    rows = []
    for share in sorted({round(float(one), 2) for one in moment}):
        cells = []
        for low, high in pairwise(_EDGES):
            chosen = (moment.round(2) == share) & (low < depth) & (depth <= high)
            gain, above = (one[chosen].mean() if chosen.any() else math.nan for one in gains)
            cells.append(f"{gain:+.1f} ({above:+.1f})" if chosen.any() else "–")
        rows.append([f"{share:.0%}", *cells])
    return rows


def summaries(path: Path) -> list[dict[str, Any]]:
    """The recorded runs of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(outcomes: str, write: str | None = None) -> None:
    """Print what freezing cost.

    Args:
        outcomes: Folder of the recorded runs, or a file of their summaries.
        write: Write the summaries of the folder to this file, a line a run.
    """
    if Path(outcomes).is_dir():
        recorded = [summary(Outcome.load(path)) for path in sorted(Path(outcomes).glob("*.safetensors"))]
    else:
        recorded = summaries(Path(outcomes))
    if write:
        Path(write).write_text("".join(json.dumps(one) + "\n" for one in recorded))
    table = Table(title=f"{len(recorded)} runs: points vs full (above compute-matched training)", box=SIMPLE_HEAD)
    for column in COSTS:
        table.add_column(column, justify="right")
    for row in costs(recorded):
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    auto_cli(main)
