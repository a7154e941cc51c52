"""What tells, at any moment of a run, whether freezing a prefix from there to the end does harm.

    python -m research.outcomes.moments research/results/moments.jsonl
    python -m research.outcomes.moments runs/outcomes --write research/results/moments.jsonl

Of every recorded case, each prefix at each moment is an example. Logistic regressions on groups of inputs are compared
on families of networks that they have not seen. Needs the extra ``benchmark``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from research.outcomes.examples import frontier
from research.outcomes.outcome import Outcome
from research.outcomes.training import learning_rate

HARMLESS = 1.0
"""Points of accuracy that freezing may cost."""

CHECKS = 20
"""Moments of a run at which its layers are described."""

INPUTS: dict[str, list[str]] = {
    "depth and progress": ["depth", "depth2", "progress", "depth_progress"],
    "length and rates": ["length", "rate", "rates_left"],
    "costs": ["parameters", "flops"],
    "movement": ["moved", "moved_of_all", "moved_lately", "lately_of_all"],
    "movement by rates": ["pace", "pace_lately"],
    "gradients": ["gradient", "gradient_of_all", "agreement"],
}


@dataclass
class Moments:
    """Every prefix of a case at every moment.

    Attributes:
        family: The network, and whether it was pretrained.
        inputs: ``[examples, inputs]``, in the order of :data:`INPUTS`.
        gains: Points of accuracy above the full run.
        above: Points of accuracy above plain training that is shortened to the same FLOPs.
        moment: Share of the run at which the prefix was frozen.
        depth: Share of the layers before the head.
        cost: FLOPs of the run relative to the full one.
    """

    family: str
    inputs: np.ndarray
    gains: np.ndarray
    above: np.ndarray
    moment: np.ndarray
    depth: np.ndarray
    cost: np.ndarray


def summary(outcome: Outcome) -> dict[str, Any]:
    """A case without its tensors: what the layers before the head showed at each twentieth of the run, layer by layer.

    ``moved``: how far the sampled weights are from those a twentieth before, relative to their norm. ``gradient``: root
    mean square norm of the gradients since then, relative to the weights; ``agreement``: square norm of their mean over
    their mean square. ``rates``: sum of the learning rates since then. ``first_loss``: mean training loss of the first
    2 % of the steps. ``losses``: that of every run in each twentieth, ``None`` where it was not trained.

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
    first = float(tensors["losses"][0][: max(1, int(0.02 * steps))].mean())
    return {**outcome.asdict(), "checks": checks, "losses": losses, "first_loss": round(first, 4)}


def _rounded(values: Tensor) -> Any:
    kept = [float(f"{value:.4g}") for value in values.flatten().tolist()]
    return kept if values.ndim else kept[0]


def moments(about: Mapping[str, Any]) -> Moments:
    """All prefixes that were frozen in a case.

    Args:
        about: Of :func:`summary`.
    """
    outcome = Outcome.fromdict(dict(about))
    case, layers = outcome.case, len(outcome.layers) - 1
    frozen = [run for run in outcome.runs if run.kind == "frozen"]
    rates = np.array([learning_rate(case, step, case.steps) for step in range(case.steps)])
    sizes, flops = np.array(outcome.sizes), np.array([one.forward for one in outcome.costs])
    logs = {name: np.log(np.clip(rows, 1e-7, None)) for name, rows in about["checks"].items() if name != "agreement"}
    agreement = np.array(about["checks"]["agreement"])
    rows = []
    for run in frozen:
        depth, progress = run.depth / layers, run.moment / case.steps
        check, begun, part = round(CHECKS * progress), float(run.moment > 0), slice(0, run.depth)
        of_all = {name: values[check, part].mean() - values[check].mean() for name, values in logs.items()}
        of_prefix = {name: values[check, part].mean() for name, values in logs.items()}
        lately = rates[max(0, run.moment - 2 * case.steps // CHECKS) : max(1, run.moment)].sum()
        rows.append({
            "depth": depth,
            "depth2": depth**2,
            "progress": progress,
            "depth_progress": depth * progress,
            "length": math.log(case.steps),
            "rate": rates[min(run.moment, case.steps - 1)] / rates.max(),
            "rates_left": rates[run.moment :].sum() / rates.sum(),
            "parameters": sizes[part].sum() / sizes.sum(),
            "flops": flops[part].sum() / flops.sum(),
            "moved": begun * of_prefix["moved"],
            "moved_of_all": begun * of_all["moved"],
            "moved_lately": begun * of_prefix["moved_lately"],
            "lately_of_all": begun * of_all["moved_lately"],
            "pace": begun * (of_prefix["moved"] - math.log(max(rates[: max(1, run.moment)].sum(), 1e-9))),
            "pace_lately": begun * (of_prefix["moved_lately"] - math.log(max(lately, 1e-9))),
            "gradient": of_prefix["gradient"],
            "gradient_of_all": of_all["gradient"],
            "agreement": agreement[check, part].mean(),
        })  # fmt: skip
    names = [name for group in INPUTS.values() for name in group]
    return Moments(
        case.network + ("" if case.weights else ", from scratch"),
        np.array([[row[name] for name in names] for row in rows]),
        np.array([run.accuracy - outcome.full.accuracy for run in frozen]),
        np.array([run.accuracy - frontier(outcome, outcome.cost(run)) for run in frozen]),
        np.array([run.moment / case.steps for run in frozen]),
        np.array([run.depth / layers for run in frozen]),
        np.array([outcome.cost(run) for run in frozen]),
    )


def out_of_family(cases: Sequence[Moments], groups: Sequence[str]) -> np.ndarray:
    """p(harmless) of every example, by a regression on the other families.

    Args:
        cases: Of several families.
        groups: Of :data:`INPUTS`.
    """
    names = [name for group in INPUTS.values() for name in group]
    columns = [names.index(name) for group in groups for name in INPUTS[group]]
    said = []
    for case in cases:
        others = [one for one in cases if one.family.split(",")[0] != case.family.split(",")[0]]
        x = np.concatenate([one.inputs for one in others])[:, columns]
        y = np.concatenate([one.gains for one in others]) >= -HARMLESS
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)).fit(x, y)
        said.append(model.predict_proba(case.inputs[:, columns])[:, 1])
    return np.concatenate(said)


def main(outcomes: str, write: str | None = None) -> None:
    """Print what the cases came to, and how well each group of inputs tells.

    Args:
        outcomes: Folder of the recorded cases, or a file of their summaries.
        write: Write the summaries to this file, a line a case.
    """
    if Path(outcomes).is_dir():
        recorded = [summary(Outcome.load(path)) for path in sorted(Path(outcomes).glob("*.safetensors"))]
    else:
        recorded = [json.loads(line) for line in Path(outcomes).read_text().splitlines()]
    if write:
        Path(write).write_text("".join(json.dumps(one) + "\n" for one in recorded))
    cases = [moments(one) for one in recorded]
    console = Console(width=120)
    table = Table(title=f"{len(cases)} cases: points vs full (above compute-matched training)", box=SIMPLE_HEAD)
    shares = sorted({round(float(share), 2) for case in cases for share in case.moment})
    for column in ("frozen from", "0–30 % of the layers", "30–50 %", "50–70 %", "70–90 %", "all but the head"):
        table.add_column(column, justify="right")
    edges = (0, 0.3, 0.5, 0.7, 0.9, 1.01)
    for share in shares:
        cells = []
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            chosen = [
                (gain, above)
                for case in cases
                for gain, above, moment, depth in zip(case.gains, case.above, case.moment, case.depth, strict=True)
                if round(float(moment), 2) == share and low < depth <= high
            ]
            if not chosen:
                cells.append("–")
                continue
            gain, above = np.mean(chosen, axis=0)
            cells.append(f"{gain:+.1f} ({above:+.1f})")
        table.add_row(f"{share:.0%}", *cells)
    console.print(table)
    was = np.concatenate([case.gains for case in cases]) >= -HARMLESS
    if len({case.family.split(",")[0] for case in cases}) < 2:
        console.print("one family alone: nothing to leave out")
        return
    table = Table(title=f"families left out, {len(was)} prefixes, {was.mean():.0%} harmless", box=SIMPLE_HEAD)
    for column in ("inputs", "log loss", "AUROC", "AUROC within a moment"):
        table.add_column(column, justify="left" if column == "inputs" else "right")
    first = "depth and progress"
    rows = [[first], *([first, group] for group in list(INPUTS)[1:]), list(INPUTS)]
    moment = np.concatenate([np.round(case.moment, 2) + 10 * number for number, case in enumerate(cases)])
    for groups in rows:
        said = out_of_family(cases, groups)
        within = [
            roc_auc_score(was[moment == one], said[moment == one])
            for one in np.unique(moment)
            if 0 < was[moment == one].mean() < 1
        ]
        name = "all" if len(groups) > 2 else " + ".join(groups)
        scores = log_loss(was, said), roc_auc_score(was, said), float(np.mean(within)) if within else math.nan
        table.add_row(name, *(f"{score:.3f}" for score in scores))
    console.print(table)


if __name__ == "__main__":
    auto_cli(main)
