"""What tells, at any moment of a run, whether freezing a prefix from there to the end does harm.

    python -m research.outcomes.moments research/results/moments.jsonl
    python -m research.outcomes.moments runs/outcomes --write research/results/moments.jsonl

Of every recorded run, each prefix at each moment is an example. Logistic regressions on groups of inputs, and the
predictor that ships, are compared on families of networks that they have not seen. Needs the extra ``benchmark``.
"""

import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from research.outcomes.examples import frontier
from research.outcomes.outcome import Outcome
from research.outcomes.training import learning_rate
from smartfrz_lightning.predictor.consequences import Branch, ConsequencesDataModule, branches, collate, learned
from smartfrz_lightning.predictor.prefix_module import PrefixModule

CHECKS = 20
"""Moments of a run at which its layers are described."""

PLACE = ["depth", "left"]
INPUTS: dict[str, list[str]] = {
    "nothing": [],
    "depth and progress": PLACE,
    "… and movement": [*PLACE, "moved"],
    "… and slowing": [*PLACE, "slowed"],
    "… and loss": [*PLACE, "loss"],
    "… and gradients": [*PLACE, "gradient", "agreement"],
    "… and length": [*PLACE, "length"],
    "… and slowing and loss": [*PLACE, "slowed", "loss"],
    "all of these": [*PLACE, "moved", "slowed", "loss", "gradient", "agreement", "length"],
}
ATTENTION = "slowing and loss, attention over the window"
SURE = 0.85
"""p(safe) of what the last columns are about."""


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


def examples(case: Mapping[str, Any], number: int = 0) -> list[tuple[Branch, dict[str, float], float]]:
    """All prefixes that were frozen later in a run: the branch, its inputs by name, and its relative FLOPs.

    Args:
        case: Of :func:`summary`.
        number: Of the run.
    """
    outcome = Outcome.fromdict(dict(case))
    runs = [run for run in outcome.runs if run.kind == "frozen" and run.moment]
    checks = {name: np.array(rows) for name, rows in case["checks"].items()}
    found = []
    for branch, run in zip(branches(case, number), runs, strict=True):
        check, prefix = len(branch.seen) - 1, slice(0, run.depth)
        gradient = np.log10(np.clip(checks["gradient"], 1e-9, None))
        inputs = {
            "depth": float(branch.context[0]),
            "left": float(branch.context[1]),
            "slowed": float(branch.seen[-1, 0]),
            "loss": float(branch.seen[-1, 1]),
            "moved": float(np.log10(np.clip(checks["moved"][check, prefix], 1e-9, None)).mean()),
            "gradient": float((gradient[check] - gradient[0])[prefix].mean()),
            "agreement": float(checks["agreement"][check, prefix].mean()),
            "length": math.log(outcome.case.steps),
        }
        found.append((branch, inputs, outcome.cost(run)))
    return found


def out_of_family(data: Sequence[tuple[Branch, dict[str, float], float]], names: Sequence[str]) -> np.ndarray:
    """p(safe) of every example, by a regression on the other networks.

    Args:
        data: Of several networks.
        names: Inputs.
    """
    network = np.array([branch.network for branch, _, _ in data])
    x = np.array([[inputs[name] for name in names] for _, inputs, _ in data]).reshape(len(data), len(names))
    safe = np.array([branch.safe for branch, _, _ in data])
    said = np.zeros(len(data))
    for left_out in np.unique(network):
        rest = network != left_out
        if not names:
            said[~rest] = safe[rest].mean()
            continue
        scale = StandardScaler().fit(x[rest])
        twice = np.concatenate([scale.transform(x[rest])] * 2)
        target = np.repeat([1, 0], rest.sum())  # each example counts for both, by how likely it is safe
        weight = np.concatenate([safe[rest], 1 - safe[rest]])
        model = LogisticRegression(C=0.1, max_iter=3000).fit(twice, target, sample_weight=weight)
        said[~rest] = model.predict_proba(scale.transform(x[~rest]))[:, 1]
    return said


def by_attention(recorded: str, data: Sequence[tuple[Branch, dict[str, float], float]], epochs: int) -> np.ndarray:
    """p(safe) of every example, by the predictor of the attention stage, trained on the other networks.

    Args:
        recorded: File of the summaries.
        data: Its examples.
        epochs: As in ``configs/predictor/prefix.yaml``.
    """
    said = np.zeros(len(data))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for left_out in sorted({branch.network for branch, _, _ in data}):
        seed_everything(1, verbose=False)
        module = PrefixModule("")
        module.on_fit_end = lambda: None  # nothing is written
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, limit_val_batches=0, enable_model_summary=False, **quiet
        )
        trainer.fit(module, ConsequencesDataModule(recorded, [left_out], batch_size=1000))
        chosen = [number for number, (branch, _, _) in enumerate(data) if branch.network == left_out]
        batch = collate([data[number][0] for number in chosen])
        with torch.no_grad():
            odds = module.predictor(batch["seen"], batch["context"], batch["lengths"])
        said[chosen] = odds.sigmoid().numpy()
    return said


def scores(data: Sequence[tuple[Branch, dict[str, float], float]], said: np.ndarray) -> list[str]:
    """Log loss, AUROC, AUROC within a moment; of what is called safe: how much, how much is, points and FLOPs."""
    safe = np.array([branch.safe for branch, _, _ in data])
    was, instant = safe >= 0.5, np.array([branch.instant for branch, _, _ in data])
    clipped = said.clip(0.001, 0.999)
    loss = -(safe * np.log(clipped) + (1 - safe) * np.log(1 - clipped)).mean()
    mixed = [one for one in np.unique(instant) if 0 < was[instant == one].mean() < 1]
    within = np.mean([roc_auc_score(was[instant == one], said[instant == one]) for one in mixed])
    row = [f"{loss:.3f}", f"{roc_auc_score(was, said):.3f}", f"{within:.3f}"]
    sure = said >= SURE
    if not sure.any():
        return [*row, "0", "–", "–", "–"]
    points, cost = (np.array(column)[sure].mean() for column in zip(*((b.points, c) for b, _, c in data), strict=True))
    return [*row, str(sure.sum()), f"{was[sure].mean():.0%}", f"{points:+.1f}", f"{cost:.2f}"]


def costs(recorded: Sequence[Mapping[str, Any]]) -> Table:
    """What freezing cost, by moment and depth."""
    table = Table(title=f"{len(recorded)} runs: points vs full (above compute-matched training)", box=SIMPLE_HEAD)
    for column in ("frozen from", "0–30 % of the layers", "30–50 %", "50–70 %", "70–90 %", "all but the head"):
        table.add_column(column, justify="right")
    found = []
    for case in recorded:
        outcome = Outcome.fromdict(dict(case))
        for run in (run for run in outcome.runs if run.kind == "frozen"):
            gain, above = (
                run.accuracy - than for than in (outcome.full.accuracy, frontier(outcome, outcome.cost(run)))
            )
            found.append((run.moment / outcome.case.steps, run.depth / (len(outcome.layers) - 1), gain, above))
    moment, depth, *gains = np.array(found).T
    edges = (0, 0.3, 0.5, 0.7, 0.9, 1.01)
    for share in sorted({round(float(one), 2) for one in moment}):
        cells = []
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            chosen = (moment.round(2) == share) & (low < depth) & (depth <= high)
            gain, above = (one[chosen].mean() if chosen.any() else math.nan for one in gains)
            cells.append(f"{gain:+.1f} ({above:+.1f})" if chosen.any() else "–")
        table.add_row(f"{share:.0%}", *cells)
    return table


def main(outcomes: str, write: str | None = None, epochs: int = 600) -> None:
    """Print what the runs came to, and how well each group of inputs tells.

    Args:
        outcomes: Folder of the recorded runs, or a file of their summaries.
        write: Write the summaries of the folder to this file, a line a run.
        epochs: Of the training of the attention.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if Path(outcomes).is_dir():
        recorded = [summary(Outcome.load(path)) for path in sorted(Path(outcomes).glob("*.safetensors"))]
        outcomes = write or str(Path(outcomes) / "moments.jsonl")
        Path(outcomes).write_text("".join(json.dumps(one) + "\n" for one in recorded))
    else:
        recorded = [json.loads(line) for line in Path(outcomes).read_text().splitlines()]
    console = Console(width=120)
    console.print(costs(recorded))
    data = [example for number, case in enumerate(filter(learned, recorded)) for example in examples(case, number)]
    title = f"networks left out: {len(data)} prefixes, {np.mean([b.safe >= 0.5 for b, _, _ in data]):.0%} safe"
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in ("inputs", "log loss", "AUROC", "within a moment", f"p ≥ {SURE}", "are safe", "points", "FLOPs"):
        table.add_column(column, justify="left" if column == "inputs" else "right")
    for name, inputs in INPUTS.items():
        table.add_row(name, *scores(data, out_of_family(data, inputs)))
    table.add_row(ATTENTION, *scores(data, by_attention(outcomes, data, epochs)))
    console.print(table)


if __name__ == "__main__":
    auto_cli(main)
