"""Read the files of CoLA and MRPC as they are distributed: tab-separated, nothing quoted."""

from pathlib import Path
from typing import NamedTuple

COLUMNS = {"cola": (4, 1, slice(3, 4)), "mrpc": (5, 0, slice(3, 5))}
"""How many a task's files have, the one with the label, and those with a sentence or the two that are compared."""


class Example(NamedTuple):
    """One row: one sentence, or two, and 0 or 1."""

    sentences: tuple[str, ...]
    label: int


def read_glue(path: str | Path, task: str) -> list[Example]:
    """Read all rows of a file; a first line with the names of MRPC's columns is no row.

    The tasks are ``"cola"`` (Warstadt et al. 2019) and ``"mrpc"`` (Dolan & Brockett 2005); files are UTF-8 text.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The task is unknown, a row is broken, or there is none.
    """
    if task not in COLUMNS:
        raise ValueError(f"task={task!r}: one of {sorted(COLUMNS)}")
    count, label, sentences = COLUMNS[task]
    examples = []
    with Path(path).open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            cells = line.rstrip("\r\n").split("\t")
            if number == 1 and cells[0].strip().lower() == "quality":
                continue
            if len(cells) != count or cells[label] not in ("0", "1") or not all(map(str.strip, cells[sentences])):
                raise ValueError(
                    f"{path}, row {number}: {line!r} is no row of {task}, which has {count} columns separated by "
                    f"tabs, with 0 or 1 in column {label + 1} and sentences from column {sentences.start + 1} on"
                )
            examples.append(Example(tuple(cells[sentences]), int(cells[label])))
    if not examples:
        raise ValueError(f"{path} has no rows")
    return examples
