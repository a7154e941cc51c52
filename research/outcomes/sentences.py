"""Sentences from the documentation of installed packages: text that is on every machine. Needs no extra."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

WORDS = (5, 30)
"""Fewest and most words of a sentence."""


@lru_cache(maxsize=32)
def documentation(package: str) -> tuple[str, ...]:
    """All different English sentences in the docstrings of a package, in the order of its files.

    The package is read, not imported; tests in it are left out.

    Args:
        package: Its name, as in ``import``.

    Raises:
        ModuleNotFoundError: It is not installed.

    Example:
        >>> from research.outcomes.sentences import documentation
        >>> len(documentation("email")) > 100
        True
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"package={package!r} is not installed: its documentation is the text of the task")
    folder = Path(spec.origin).parent
    found: dict[str, None] = {}
    for path in sorted(folder.rglob("*.py")):
        if any(part.startswith("test") for part in path.relative_to(folder).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # templates and files of other versions of Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found |= dict.fromkeys(_sentences(ast.get_docstring(node) or ""))
    return tuple(found)


def _sentences(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph:
            continue
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", " ".join(paragraph.split())):
            words = sentence.split()
            plain = sum(word.strip(".,;:()").isalpha() for word in words)
            if WORDS[0] <= len(words) <= WORDS[1] and sentence.endswith(".") and plain >= 0.8 * len(words):
                yield sentence
