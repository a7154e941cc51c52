"""Condense recorded cases into one small file that judges rules and trains predictors as they do.

    python -m smartfrz_lightning.outcomes.condense runs/held_out configs/outcomes/results/held_out.jsonl

Needs the extra ``benchmark``.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from jsonargparse import auto_cli

from smartfrz_lightning.outcomes.examples import Example, load_examples


def condense(examples: Iterable[Example], path: str | Path) -> None:
    """Write cases as lines of JSON, without gradients and weights.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from smartfrz_lightning.outcomes.condense import condense
        >>> from smartfrz_lightning.outcomes.examples import load_examples
        >>> cases = load_examples("configs/outcomes/results/held_out.jsonl")[:2]
        >>> with TemporaryDirectory() as folder:
        ...     condense(cases, f"{folder}/two.jsonl")
        ...     again = load_examples(f"{folder}/two.jsonl")
        >>> again[1].outcome == cases[1].outcome
        True
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(one.asdict()) + "\n" for one in examples))


def main(outcomes: str, output: str) -> None:
    """Condense.

    Args:
        outcomes: Folder of recorded cases.
        output: The file, ``.jsonl``; cases that it holds already stay, those of the folder replace them.
    """
    if Path(output).suffix != ".jsonl":
        raise ValueError(f"output={output!r}: a name that ends with .jsonl, by which it is known again")
    before = load_examples(output) if Path(output).is_file() else []
    cases = {one.outcome.case.name: one for one in [*before, *load_examples(outcomes)]}
    condense([cases[name] for name in sorted(cases)], output)


if __name__ == "__main__":
    auto_cli(main)
