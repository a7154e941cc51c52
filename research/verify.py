"""Recompute every published number that carries a mark, and fail where one does not follow from ``research/results``.

    python -m research.verify           # check
    python -m research.verify --write   # write what follows

Marks are comments, which Markdown does not show. ``<!-- table: NAME -->`` and ``<!-- end -->`` stand around a generated
table. A number in a sentence is followed by its source: ``0.75<!-- = flops resnet32_long smart -->``.
"""

import argparse
import difflib
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from research.runs import RUNS, Runs, spread
from research.tables import TABLES

ROOT = Path(__file__).parents[1]
FILES = ("README.md", "docs/**/*.md", "predictor_weights/*.md", "research/*.md")
_TABLE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_NUMBER = re.compile(r"([+-]?\d[\d.]*(?: ± \d[\d.]*)?)(<!-- = (\S+) (\S+) (\S+) -->)")
_MARK = re.compile(r"<!-- (?:=|table:)")


def number(runs: Runs, what: str, case: str, run: str, like: str) -> str:
    """A number of a sentence, with as many digits as it is written with.

    Args:
        runs: Published runs.
        what: ``points``, ``flops``, ``time`` (relative to full training) or ``value`` (× 100).
        case: Name of the case.
        run: Name of the method.
        like: As it is written: with or without a spread, a sign, digits.

    Raises:
        ValueError: There are no such runs.
    """
    digits = len(like.split(" ")[0].partition(".")[2])
    values = [100 * row["value"] for row in runs.of(case, run)] if what == "value" else getattr(runs, what)(case, run)
    if not values:
        raise ValueError(f"no published runs: {what} {case} {run}")
    signed = like[0] in "+-" and what == "points"
    if "±" in like:
        return spread(values, digits, signed)
    return f"{statistics.fmean(values):{'+' if signed else ''}.{digits}f}"


def recomputed(text: str, runs: Runs) -> str:
    """A Markdown text with every marked number and table computed anew."""
    text = _TABLE.sub(lambda found: found[1] + TABLES[found[2]](runs) + found[4], text)
    return _NUMBER.sub(lambda found: number(runs, *found.group(3, 4, 5), found[1]) + found[2], text)


def differences(root: Path, runs: Runs) -> Iterator[str]:
    """What does not follow, as lines of a diff."""
    for path in files(root):
        text = path.read_text()
        marks, understood = len(_MARK.findall(text)), len(_TABLE.findall(text)) + len(_NUMBER.findall(text))
        if marks != understood:
            yield f"{path.relative_to(root)}: {marks - understood} marks without a number or an end"
        new = recomputed(text, runs)
        name = str(path.relative_to(root))
        yield from difflib.unified_diff(text.splitlines(), new.splitlines(), name, "should be", n=0, lineterm="")


def files(root: Path) -> list[Path]:
    """The files in which marks may stand."""
    return sorted(path for pattern in FILES for path in root.glob(pattern))


def main() -> None:
    """Check all marked numbers, or write what follows."""
    parser = argparse.ArgumentParser(description="Recompute every published number that carries a mark.")
    parser.add_argument("--write", action="store_true", help="write what follows, in place of failing")
    given, runs = parser.parse_args(), Runs()
    if given.write:
        for path in files(ROOT):
            path.write_text(recomputed(path.read_text(), runs))
    elif found := list(differences(ROOT, runs)):
        sys.exit("\n".join(found))
    marks = sum(len(_MARK.findall(path.read_text())) for path in files(ROOT))
    print(f"{marks} marks, and every number behind them follows from {RUNS.relative_to(ROOT).parent}")


if __name__ == "__main__":
    main()
