"""Read the files of CoLA and MRPC as they are distributed: tab-separated, nothing quoted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GlueFormat:
    """Where a task's files have what.

    Attributes:
        columns: Names of all columns.
        label: Number of the column with the label, 0 or 1.
        sentences: Numbers of the columns with one sentence, or two that are compared.
    """

    columns: tuple[str, ...]
    label: int
    sentences: tuple[int, ...]


FORMATS = {
    "cola": GlueFormat(("source", "label", "original mark", "sentence"), 1, (3,)),
    "mrpc": GlueFormat(("quality", "#1 id", "#2 id", "#1 string", "#2 string"), 0, (3, 4)),
}


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        sentences: One sentence, or two.
        label: 0 or 1.
    """

    sentences: tuple[str, ...]
    label: int


def read_glue(path: str | Path, task: str) -> list[Example]:
    """Read all rows of a file; a first line with the names of MRPC's columns is no row.

    Args:
        path: UTF-8 text, a row a line, columns separated by tabs, quotes without meaning.
        task: ``"cola"`` (Warstadt et al. 2019) or ``"mrpc"`` (Dolan & Brockett 2005).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The task is unknown, a row is broken (its number and column are named), or there is none.
    """
    if task not in FORMATS:
        raise ValueError(f"task={task!r}: one of {sorted(FORMATS)}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r}: no such file; it should hold rows of {task}, columns by tabs")
    form = FORMATS[task]
    examples = []
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            cells = line.rstrip("\r\n").split("\t")
            if number == 1 and cells[0].strip().lower() == form.columns[0]:
                continue
            examples.append(_example(cells, form, f"{path}, row {number}"))
    if not examples:
        raise ValueError(f"{path} has no rows")
    return examples


def _example(cells: Sequence[str], form: GlueFormat, where: str) -> Example:
    if len(cells) != len(form.columns):
        raise ValueError(
            f"{where}: {len(cells)} columns, expected {len(form.columns)} separated by tabs: {', '.join(form.columns)}"
        )
    if cells[form.label] not in ("0", "1"):
        raise ValueError(
            f"{where}, column {form.label + 1} ({form.columns[form.label]}): {cells[form.label]!r}, expected 0 or 1"
        )
    for number in form.sentences:
        if not cells[number].strip():
            raise ValueError(f"{where}, column {number + 1} ({form.columns[number]}): empty, expected a sentence")
    return Example(tuple(cells[number] for number in form.sentences), int(cells[form.label]))
