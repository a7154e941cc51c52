"""Cases that are picked from a file, and what is recorded of them, a line each."""

import json
import random
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import Progress

from smartfrz_lightning.outcomes.case import Case, draw_cases
from smartfrz_lightning.outcomes.examples import load_examples


def chosen_cases(
    cases: str | Path | None,
    groups: Collection[str] | None = None,
    shortest: int = 0,
    longest: int = 10**9,
    most: int | None = None,
) -> list[Case]:
    """Cases from a file.

    Args:
        cases: File of groups of cases to draw, whose order is then drawn, or a condensed file of recorded ones.
        groups: Only these, by name.
        shortest: Only cases of at least so many steps.
        longest: Only cases of at most so many steps.
        most: Only the first so many of these.

    Raises:
        ValueError: No file is given, or a group is not in it.

    Example:
        >>> from smartfrz_lightning.outcomes.line_by_line import chosen_cases
        >>> chosen_cases(None)
        Traceback (most recent call last):
            ...
        ValueError: cases=None: give a file of cases, such as configs/outcomes/images.yaml, or --judge
    """
    if cases is None:
        raise ValueError("cases=None: give a file of cases, such as configs/outcomes/images.yaml, or --judge")
    if Path(cases).suffix == ".jsonl":
        drawn = [one.outcome.case for one in load_examples(cases)]
    else:
        named = yaml.safe_load(Path(cases).read_text())
        if unknown := set(groups or ()) - set(named):
            raise ValueError(f"groups={sorted(unknown)}: {cases} has only {sorted(named)}")
        drawn = list(draw_cases([group for name, group in named.items() if groups is None or name in groups]))
        random.Random(0).shuffle(drawn)
    return [case for case in drawn if shortest <= case.steps <= longest][:most]


def record_lines(cases: Sequence[Case], output: str | Path, record: Callable[[Case], dict[str, Any]]) -> None:
    """Record what a file lacks, with progress: a line of JSON for each case, under whose ``"case"`` it stands.

    Args:
        cases: The cases.
        output: The file; what is in it stays.
        record: Gives what is recorded of a case.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from smartfrz_lightning.outcomes.case import Case
        >>> from smartfrz_lightning.outcomes.line_by_line import record_lines
        >>> case = Case("vgg8", "", "own", (0, 1), 8, "none", True, "sgd", 0.02, "cosine", 100, 4, 1)
        >>> with TemporaryDirectory() as folder:
        ...     for _ in range(2):  # the second time there is nothing to do
        ...         record_lines([case], Path(folder, "lines.jsonl"), lambda case: {"case": case.asdict()})
        ...     Path(folder, "lines.jsonl").read_text().count("vgg8")
        1
    """
    file = Path(output)
    lines = file.read_text().splitlines() if file.is_file() else []
    done = {json.dumps(json.loads(line)["case"]) for line in lines}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress, file.open("a") as out:
        for case in progress.track([case for case in cases if json.dumps(case.asdict()) not in done]):
            out.write(json.dumps(record(case)) + "\n")
            out.flush()
