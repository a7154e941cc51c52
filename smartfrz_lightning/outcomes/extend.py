"""Teach a start predictor one more input, from cases in which it was recorded.

    python -m smartfrz_lightning.outcomes.extend configs/outcomes/results/training.jsonl old.safetensors new.safetensors

What the predictor knew stays as it is. Needs the extra ``benchmark``.
"""

import math
from collections.abc import Sequence

from jsonargparse import auto_cli
from rich.console import Console
from torch import Tensor

from smartfrz_lightning.outcomes.examples import Example, load_examples
from smartfrz_lightning.outcomes.fitting import extend
from smartfrz_lightning.outcomes.learn import log_loss
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.predictor.start_inputs import SHIFT_FLOOR

SILENT = {"shift": math.log(SHIFT_FLOOR)}
"""Values at which an input says nothing."""


def left_out(predictor: StartPredictor, examples: Sequence[Example], name: str) -> list[Tensor]:
    """Likelihoods ``[fronts]`` for each example, by a predictor that was extended without it.

    Example:
        >>> from smartfrz_lightning.outcomes.examples import load_examples
        >>> from smartfrz_lightning.outcomes.extend import left_out
        >>> from smartfrz_lightning.outcomes.fitting import fit
        >>> cases = load_examples("configs/outcomes/results/held_out.jsonl")[:4]
        >>> len(left_out(fit(cases, inputs=["depth"]), cases, "shift"))
        4
    """
    found = []
    for number, one in enumerate(examples):
        others = [*examples[:number], *examples[number + 1 :]]
        found.append(extend(predictor, others, name, SILENT[name])(one.inputs).sigmoid())
    return found


def main(outcomes: str, old: str, new: str, name: str = "shift") -> None:
    """Extend, and say what it brings on cases that were left out in turn.

    Args:
        outcomes: Folder of the recorded cases, or a condensed file of them.
        old: File of the predictor as it is.
        new: File of the one that looks at one input more.
        name: The input.
    """
    if name not in SILENT:
        raise ValueError(f"name={name!r}: one of {', '.join(SILENT)}")
    examples, predictor, console = load_examples(outcomes), StartPredictor.load(old), Console()
    before = [predictor(one.inputs).sigmoid() for one in examples]
    for text, likelihoods in (("as it was", before), ("extended, left out", left_out(predictor, examples, name))):
        loss, auroc = log_loss(examples, likelihoods)
        console.print(f"{text}: log loss {loss:.3f}, AUROC {auroc:.3f}, {len(examples)} cases")
    longer = extend(predictor, examples, name, SILENT[name])
    console.print(f"weight of {name}: {float(longer.score.weight[0, -1]):.3f}")
    longer.save(new, extended_by=name, cases=len(examples))


if __name__ == "__main__":
    auto_cli(main)
