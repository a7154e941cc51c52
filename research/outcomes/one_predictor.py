"""Does one predictor answer at the start and later as well as two? Judged on networks left out.

    python -m research.outcomes.one_predictor

At step 0 the question is the same with an empty history: nothing is done, and the loss is that of the first batch. The
recorded gradients are those of the first twentieth of full training, where the start stage watches those of a probe.
"""

import json
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from sklearn.metrics import log_loss, roc_auc_score

from research.outcomes.branches import MARGIN, learned
from research.outcomes.later import regression, show
from research.outcomes.later_examples import examples
from smartfrz_lightning.predictor.later import later_inputs

COLUMNS = ("depth", "left", "loss", "gradient")
SHOWN = ("learned from", "inputs", "log loss at the start", "AUROC at the start", "log loss later", "AUROC later")
ROWS = (
    ("start alone", ("depth",)),
    ("start alone", ("depth", "gradient")),
    ("later alone", ("depth", "left", "loss")),
    ("both", ("depth", "left", "loss")),
    ("both", ("depth", "left", "loss", "gradient")),
)


def prefixes(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (``COLUMNS``), whether safe, whether at the start, and the network, of every frozen prefix."""
    inputs, safe, start, network = [], [], [], []
    for case in filter(learned, map(json.loads, path.read_text().splitlines())):
        gradient = np.log10(np.clip(case["checks"]["gradient"][0], 1e-9, None))
        full = next(run["accuracy"] for run in case["runs"] if run["kind"] == "full")
        empty = later_inputs(len(gradient), 0.0, 1.0)
        for run in case["runs"]:
            if run["kind"] == "frozen" and not run["moment"]:
                inputs.append([*empty[run["depth"] - 1].tolist(), gradient[: run["depth"]].mean() - gradient.mean()])
                safe.append(run["accuracy"] - full >= -MARGIN)
        later = examples(case)
        for one in later:
            depth = round(one.inputs["depth"] * len(gradient))
            inputs.append([*one.branch.inputs.tolist(), gradient[:depth].mean() - gradient.mean()])
            safe.append(one.branch.safe)
        count = len(inputs) - len(network)
        first = count - len(later)
        start += [True] * first + [False] * (count - first)
        network += [case["case"]["network"]] * count
    return np.array(inputs), np.array(safe), np.array(start), np.array(network)


def out_of_family(x: np.ndarray, safe: np.ndarray, known: np.ndarray, network: np.ndarray) -> np.ndarray:
    """p(safe) of every prefix by what was learned from the known ones of other networks."""
    said = np.zeros(len(x))
    for left_out in np.unique(network):
        train, test = known & (network != left_out), network == left_out
        mean, scale, weight, bias = regression(torch.tensor(x[train]).float(), torch.tensor(safe[train]).float())
        said[test] = (((torch.tensor(x[test]).float() - mean) / scale) @ weight + bias).sigmoid().numpy()
    return said


def comparison(path: Path) -> list[list[str]]:
    """A row of the table for each predictor."""
    x, safe, start, network = prefixes(path)
    rows = []
    for learned_from, names in ROWS:
        known = {"start alone": start, "later alone": ~start, "both": np.ones_like(start)}[learned_from]
        said = out_of_family(x[:, [COLUMNS.index(name) for name in names]], safe, known, network)
        cells = []
        for part in (start, ~start):
            judged = [f"{log_loss(safe[part], said[part]):.3f}", f"{roc_auc_score(safe[part], said[part]):.3f}"]
            told = part is start or "loss" in names  # later, depth alone is not asked
            cells += judged if told else ["–", "–"]
        rows.append([learned_from, ", ".join(names), *cells])
    return rows


def main(recorded: str = "research/results/moments.jsonl") -> None:
    """Print the table.

    Args:
        recorded: File of recorded runs.
    """
    show("networks left out", SHOWN, comparison(Path(recorded)))


if __name__ == "__main__":
    auto_cli(main)
