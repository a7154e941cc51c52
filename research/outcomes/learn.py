"""Train the start predictor on recorded cases.

    python -m research.outcomes.learn runs/outcomes predictor_weights/start.safetensors

Before that it is tried on families of networks that it has not seen, with fewer inputs; the numbers go to the terminal,
and how reliable p(safe) is into a picture beside the file. Needs the extra ``benchmark``.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from research.outcomes.examples import Example, load_examples
from research.outcomes.fitting import HARMLESS, fit, harmless, out_of_family, recorded
from research.outcomes.judge import shown, verdict
from research.outcomes.rules import choose
from smartfrz_lightning.predictor.start import INPUTS

DEPTH = ["depth", "depth_squared"]
CHOSEN = [*DEPTH, "front_to_all", "left"]
"""Inputs of the regression; ``shift`` was added to the shipped one by a fit of its own (see ``start.md``)."""

VARIANTS: dict[str, dict] = {
    "depth alone": {"inputs": DEPTH},
    "chosen": {"inputs": CHOSEN},
    **{f"chosen without {name}": {"inputs": [n for n in CHOSEN if n != name]} for name in CHOSEN[2:]},
    "all inputs": {"inputs": INPUTS},
}


def log_loss(likelihoods: Sequence[Tensor], gains: Sequence[Tensor]) -> tuple[float, float]:
    """Mean negative log-likelihood of what became of fronts, and the AUROC.

    Args:
        likelihoods: ``[fronts]`` of each case: how likely it was said to be that holding them does no harm.
        gains: ``[fronts]`` of each case: points of accuracy above full training.

    Example:
        >>> import torch
        >>> from research.outcomes.learn import log_loss
        >>> loss, auroc = log_loss([torch.tensor([0.9, 0.2])], [torch.tensor([1.0, -4.0])])
        >>> round(loss, 3), auroc
        (0.164, 1.0)
    """
    said = torch.cat(list(likelihoods)).clamp(1e-4, 1 - 1e-4)
    was = torch.cat([one >= -HARMLESS for one in gains]).float()
    return float(torch.nn.functional.binary_cross_entropy(said, was)), float(binary_auroc(said, was.int()))


def reliability(examples: Sequence[Example], likelihoods: Sequence[Tensor], path: str | Path, bins: int = 8) -> None:
    """Draw how often fronts were harmless against how likely that was said to be, in bins of equal count.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from research.outcomes.examples import load_examples
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> from research.outcomes.learn import reliability
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> predictor = StartPredictor.load()
        >>> likelihoods = [predictor(case.inputs).sigmoid() for case in cases]
        >>> with TemporaryDirectory() as folder:
        ...     reliability(cases, likelihoods, f"{folder}/reliability.png")
    """
    from matplotlib.figure import Figure

    said = torch.cat([p[recorded(one)] for one, p in zip(examples, likelihoods, strict=True)])
    was = torch.cat([harmless(one) for one in examples])
    order = said.argsort()
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for part in order.tensor_split(bins):
        mean, share, count = float(said[part].mean()), float(was[part].mean()), len(part)
        error = 1.96 * max(share * (1 - share), 0.25 / count) ** 0.5 / count**0.5
        axes.errorbar(mean, share, [[min(error, share)], [min(error, 1 - share)]], fmt="o", color="tab:blue")
    axes.set(xlabel="likelihood of no harm, as said", ylabel="share that did no harm", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"{len(said)} fronts of {len(examples)} runs,\nnetworks not seen in training", fontsize=10)
    figure.savefig(path, dpi=130)


def main(outcomes: str, output: str, compare: bool = True, threshold: float = 0.8) -> None:
    """Compare, train, write.

    Args:
        outcomes: Folder of the recorded cases, or a condensed file of them.
        output: File of the predictor.
        compare: Try all variants first.
        threshold: Likelihood of no harm at which a front is held, in the comparison.
    """
    torch.set_num_threads(1)
    examples = load_examples(outcomes)
    if compare:
        table = Table(title=f"families not seen, {len(examples)} runs", box=SIMPLE_HEAD, pad_edge=False)
        for column in ("", "log loss", "AUROC", "points vs full", "harmless", "FLOPs", "above frontier"):
            table.add_column(column, justify="right" if column else "left")
        for name, how in VARIANTS.items():
            likelihoods = out_of_family(examples, **how)
            number = {id(one): p for one, p in zip(examples, likelihoods, strict=True)}
            one = verdict(lambda case, known=number: choose(case, known[id(case)], threshold), examples)
            of_held = [p[recorded(case)] for case, p in zip(examples, likelihoods, strict=True)]
            gains = [torch.tensor([case.gain(case.held[depth]) for depth in sorted(case.held)]) for case in examples]
            scores = [f"{score:.3f}" for score in log_loss(of_held, gains)]
            shares = [f"{one.harmless:.0%}", f"{one.flops:.2f}"]
            table.add_row(name, *scores, shown(*one.gain), *shares, shown(*one.above))
        Console(width=140).print(table)
    picture = Path(output).with_suffix(".png")
    reliability(examples, out_of_family(examples, inputs=CHOSEN), picture)
    fit(examples, inputs=CHOSEN).save(output, cases=len(examples), families=sorted({one.family for one in examples}))


if __name__ == "__main__":
    auto_cli(main)
