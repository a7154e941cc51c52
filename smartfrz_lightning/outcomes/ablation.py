r"""What a start predictor is worth with other inputs, labels, probes and samples, and how much that varies.

    results=configs/outcomes/results
    python -m smartfrz_lightning.outcomes.ablation "[$results/second_look.jsonl, $results/training.jsonl]" \
        $results/held_out.jsonl --probes $results/probes.jsonl

Logistic regressions have no seed. So every kind of predictor is fitted to many draws of the training cases, with
replacement, the same draws for all kinds; each is judged on all held-out cases. Needs the extra ``benchmark``.
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from smartfrz_lightning.engine.probed_start import choose_front
from smartfrz_lightning.engine.second_look import CHECKED
from smartfrz_lightning.outcomes.fitting import fit_rows
from smartfrz_lightning.outcomes.fronts import Fronts, load_fronts
from smartfrz_lightning.outcomes.learn import CHOSEN, DEPTH, log_loss
from smartfrz_lightning.outcomes.probe_again import LENGTHS, SAMPLES, SEEN
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.start_inputs import INPUTS, unshifted

Label = Callable[[Fronts], Tensor]

LABELS: dict[str, Label] = {
    "at most 1 point lost": lambda one: one.gains >= -1,
    "at most 4 points lost": lambda one: one.gains >= -4,
    "not below the frontier": lambda one: one.above >= 0,
}
"""What holding a front has to come to, to count as no harm."""


def _loss_hardly_higher(one: Fronts) -> Tensor:
    assert one.losses is not None
    return one.losses <= 1.02


@dataclass
class Score:
    """How a predictor does on cases that it has not seen.

    Attributes:
        log_loss: Mean negative log-likelihood of what became of the fronts.
        auroc: Of "harmless", over all fronts.
        within: The same in each case that has both kinds of fronts, on average: the ranking alone.
        calibration: Mean distance between likelihoods and shares, in ten bins.
        sure: Share of harmless ones among the fronts of a likelihood of 0.8 and more; ``nan`` without any.
        points: Above full training, on average over the cases, if fronts of a likelihood of 0.65 and more are held.
        flops: Of these runs, relative to full training.
        above: Points above plain training shortened to the same FLOPs.

    Example:
        >>> from smartfrz_lightning.outcomes.ablation import Score
        >>> Score(0.5, 0.8, 0.9, 0.1, 0.9, 1.0, 0.7, 3.0).flops
        0.7
    """

    log_loss: float
    auroc: float
    within: float
    calibration: float
    sure: float
    points: float
    flops: float
    above: float


def score(predictor: StartPredictor, cases: Sequence[Fronts]) -> Score:
    """Judge a predictor; "harmless" is the same for all: at most 2 points below full training.

    Example:
        >>> from smartfrz_lightning.outcomes.ablation import score
        >>> from smartfrz_lightning.outcomes.fronts import load_fronts
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> cases = load_fronts("configs/outcomes/results/held_out.jsonl")
        >>> score(StartPredictor.load(), cases).within > 0.8
        True
    """
    said = [predictor(one.inputs).sigmoid() for one in cases]
    was = [one.harmless for one in cases]
    both = [float(binary_auroc(p, w.int())) for p, w in zip(said, was, strict=True) if w.any() and not w.all()]
    all_said, all_was = torch.cat(said), torch.cat(was)
    ends = []
    for one, likelihoods in zip(cases, said, strict=True):
        number = choose_front(one.costs.tolist(), likelihoods.tolist(), CHECKED)
        ends.append(
            [float(row[number - 1]) for row in (one.gains, one.costs, one.above)] if number else [0.0, 1.0, 0.0]
        )
    points, flops, above = (statistics.fmean(column) for column in zip(*ends, strict=True))
    return Score(
        *log_loss(said, [one.gains for one in cases]),
        statistics.fmean(both),
        float(binary_calibration_error(all_said, all_was.int(), n_bins=10)),
        float(all_was[all_said >= 0.8].float().mean()),
        points,
        flops,
        above,
    )


def fitted(
    cases: Sequence[Fronts], inputs: Sequence[str] = CHOSEN, label: Label = attrgetter("harmless")
) -> StartPredictor | None:
    """A logistic regression on some cases; ``None`` where one label is all there is.

    Example:
        >>> from smartfrz_lightning.outcomes.ablation import fitted
        >>> from smartfrz_lightning.outcomes.fronts import load_fronts
        >>> fitted(load_fronts("configs/outcomes/results/second_look.jsonl"), ["depth"]).inputs
        ['depth']
    """
    rows, labels = torch.cat([one.inputs for one in cases]), torch.cat([label(one) for one in cases])
    if labels.all() or not labels.any():
        return None
    return fit_rows(StartPredictor(inputs), rows, labels.float())


def seen_again(cases: Sequence[Fronts], probes: dict[str, dict], kind: str, number: int) -> list[Fronts]:
    """Cases with the inputs of another probe.

    Raises:
        ValueError: It was of other fronts of a case, or of none.

    Args:
        cases: The cases.
        probes: Those that were recorded, by case.
        kind: ``"samples"`` or ``"lengths"``.
        number: Of samples, or steps.

    Example:
        >>> import json
        >>> from smartfrz_lightning.outcomes.ablation import seen_again
        >>> from smartfrz_lightning.outcomes.fronts import load_fronts
        >>> case = load_fronts("configs/outcomes/results/held_out.jsonl")[0]
        >>> probe = {"depths": case.depths, "samples": {"16": [[0.0] * 5] * 5}}
        >>> probes = {json.dumps(case.case.asdict()): probe}
        >>> seen_again([case], probes, "samples", 16)[0].inputs[0, 3].item()
        0.0
    """
    columns, found = [INPUTS.index(name) for name in SEEN], []
    for one in cases:
        probe = probes.get(json.dumps(one.case.asdict()))
        if probe is None or probe["depths"] != one.depths:
            raise ValueError(
                f"no probe of the fronts {one.depths} of {one.case.name}: record it by outcomes.probe_again"
            )
        inputs = one.inputs.clone()
        inputs[:, columns] = torch.tensor(probe[kind][str(number)])
        found.append(replace(one, inputs=inputs))
    return found


def main(train: list[str], held_out: str, probes: str | None = None, draws: int = 20) -> None:
    """Fit and judge.

    Args:
        train: Files of cases to learn from, of second looks or condensed; only those that begin with trained weights.
            Of a case that is in several, the fronts of the first count; labels by the loss are learned from those files
            that have losses.
        held_out: File of the cases to judge by.
        probes: File of other probes of all these cases (``outcomes.probe_again``).
        draws: Of the training cases, with replacement.
    """
    every = [one for file in train for one in load_fronts(file) if one.case.weights]
    cases, judges = list({one.case: one for one in reversed(every)}.values()), load_fronts(held_out)
    lines = [json.loads(line) for line in Path(probes).read_text().splitlines()] if probes else []
    kinds = _kinds(cases, [one for one in every if one.losses is not None], judges, lines)
    title = f"{len(cases)} cases to learn from, {draws} draws; {len(judges)} held out: mean ± standard deviation"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    columns = "log loss", "AUROC", "within a case", "calibration", "harmless of 0.8", "points", "FLOPs", "above"
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    silent = [replace(one, inputs=unshifted(one.inputs)) for one in judges]
    for name, others in (("the shipped one", judges), ("the same, its shift silent", silent)):
        shipped = score(StartPredictor.load(), others)
        table.add_row(name, *(_shown([value], digits) for value, digits in _digits(shipped)))
    for name, (some, others, how) in kinds.items():
        scores = []
        for draw in range(draws):
            chosen = torch.randint(len(some), (len(some),), generator=torch.Generator().manual_seed(draw))
            predictor = fitted([some[number] for number in chosen.tolist()], **how)
            if predictor is not None:
                scores.append(score(predictor, others))
        rows = zip(*(_digits(one) for one in scores), strict=True)
        table.add_row(name, *(_shown([value for value, _ in row], row[0][1]) for row in rows))
    Console(width=170).print(table)


def _kinds(
    cases: list[Fronts], with_loss: list[Fronts], judges: list[Fronts], probes: list[dict]
) -> dict[str, tuple[list[Fronts], list[Fronts], dict]]:
    """What is compared, by name: cases to learn from, cases to judge by, and how it is fitted."""
    kinds: dict[str, tuple[list[Fronts], list[Fronts], dict]] = {"its four inputs": (cases, judges, {})}
    kinds["depth alone"] = (cases, judges, {"inputs": DEPTH})
    for name in CHOSEN[2:]:
        kinds[f"without {name}"] = (cases, judges, {"inputs": [other for other in CHOSEN if other != name]})
    for name in INPUTS:
        if name not in (*CHOSEN, "body"):
            kinds[f"and {name}"] = (cases, judges, {"inputs": [*CHOSEN, name]})
    kinds |= {f"label: {name}": (cases, judges, {"label": label}) for name, label in LABELS.items()}
    if with_loss:
        kinds["label: loss at most 2 % higher"] = (with_loss, judges, {"label": _loss_hardly_higher})
        kinds["its label, of the same cases"] = (with_loss, judges, {})
    if probes:
        by_case = {json.dumps(probe["case"]): probe for probe in probes}

        def again(kind: str, number: int) -> tuple[list[Fronts], list[Fronts], dict]:
            return seen_again(cases, by_case, kind, number), seen_again(judges, by_case, kind, number), {}

        kinds |= {f"probe of {number} steps": again("lengths", number) for number in LENGTHS}
        kinds |= {f"{number} weights a layer": again("samples", number) for number in SAMPLES}
    return kinds


def _digits(one: Score) -> list[tuple[float, int]]:
    return list(zip(vars(one).values(), (3, 3, 3, 3, 2, 1, 2, 1), strict=True))


def _shown(values: Sequence[float], digits: int) -> str:
    values = [value for value in values if not math.isnan(value)] or [math.nan]
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


if __name__ == "__main__":
    auto_cli(main)
