"""Tables in Markdown."""

from collections.abc import Sequence


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of these rows."""
    return "".join("| " + " | ".join(line) + " |\n" for line in [heads, ["---"] * len(heads), *rows])
