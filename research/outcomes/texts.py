"""Text tasks of the cases: where a sentence comes from, or whether its words are in order. Needs the extra ``text``."""

import random
from pathlib import Path

import torch
from torch import Tensor

from research.outcomes.case import Case
from research.outcomes.sentences import documentation
from smartfrz_lightning.experiments.glue_files import read_glue
from smartfrz_lightning.extras import require

PACKAGES = (
    "asyncio", "email", "lightning", "matplotlib", "networkx", "numpy", "rich", "scipy", "sklearn", "sympy", "tkinter",
    "torchvision",
)  # fmt: skip
"""The classes of ``topic`` by number."""

TOKENS, VALIDATION = 24, 1000
TASKS = ("topic", "order", "cola")


def text_task(case: Case, root: str | Path, weights: str | Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation sentences of a case as token ids ``[n, 24]``, 0 where there is none, with their labels.

    ``data="topic"``: from the documentation of which of the packages ``classes`` a sentence comes.
    ``data="order"``: whether two neighbouring words have changed places, which is about grammar as CoLA is.
    ``data="cola"``: CoLA, from its files ``<root>/cola/in_domain_train.tsv`` and ``in_domain_dev.tsv``.

    Args:
        case: The case.
        root: Folder of the data.
        weights: Folder of the pretrained networks; the tokenizer is that in its folder ``all-MiniLM-L6-v2``.

    Raises:
        ValueError: The task or the shift is unknown.
        ModuleNotFoundError: A package whose documentation is needed is not installed.

    Example:
        >>> from research.outcomes.case import Case
        >>> from research.outcomes.texts import text_task
        >>> case = Case("minilm", "", "poems", (0, 1), 8, "none", False, "adamw", 1e-4, "cosine", 4, 4, 1)
        >>> text_task(case, "data", "weights")
        Traceback (most recent call last):
            ...
        ValueError: data='poems': one of topic, order, cola
    """
    if case.data not in TASKS:
        raise ValueError(f"data={case.data!r}: one of {', '.join(TASKS)}")
    draw = random.Random(f"{case.seed}/text")
    if case.data == "cola":
        rows = [row for part in ("dev", "train") for row in _cola(case, root, part, draw)]
    else:
        rows = _topics(case, draw) if case.data == "topic" else _order(case, draw)
        draw.shuffle(rows)
    sentences, labels = [shifted_words(sentence, case.shift) for sentence, _ in rows], [label for _, label in rows]
    require("transformers", "text")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(Path(weights) / "all-MiniLM-L6-v2"))
    settings = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    ids, target = tokenizer(sentences, **settings)["input_ids"], torch.tensor(labels)
    return (ids[VALIDATION:], target[VALIDATION:]), (ids[:VALIDATION], target[:VALIDATION])


def _topics(case: Case, draw: random.Random) -> list[tuple[str, int]]:
    each = -(-(case.images + VALIDATION) // len(case.classes))
    rows = []
    for label, number in enumerate(case.classes):
        found = documentation(PACKAGES[number])
        rows += [(sentence, label) for sentence in draw.sample(found, min(each, len(found)))]
    return rows


def _order(case: Case, draw: random.Random) -> list[tuple[str, int]]:
    pool = [sentence for package in PACKAGES for sentence in documentation(package)]
    rows = []
    for sentence in draw.sample(pool, case.images + VALIDATION):
        words = sentence.split()
        if label := draw.randrange(2):
            place = draw.randrange(len(words) - 2)  # the last word has the full stop
            words[place], words[place + 1] = words[place + 1], words[place]
        rows.append((" ".join(words), label))
    return rows


def _cola(case: Case, root: str | Path, part: str, draw: random.Random) -> list[tuple[str, int]]:
    rows = read_glue(Path(root) / "cola" / f"in_domain_{part}.tsv", "cola")
    count = VALIDATION if part == "dev" else case.images
    return [(row.sentences[0], row.label) for row in draw.sample(rows, count)]


def shifted_words(sentence: str, shift: str) -> str:
    """Change all sentences alike.

    Args:
        sentence: Words, separated by spaces.
        shift: ``"none"``, ``"reverse"`` (the order of the words) or ``"drop"`` (every third word).

    Example:
        >>> from research.outcomes.texts import shifted_words
        >>> shifted_words("a b c d", "reverse"), shifted_words("a b c d", "drop")
        ('d c b a', 'a b d')
    """
    words = sentence.split()
    if shift == "none":
        return sentence
    if shift == "reverse":
        return " ".join(reversed(words))
    if shift == "drop":
        return " ".join(word for number, word in enumerate(words) if number % 3 != 2)
    raise ValueError(f"shift={shift!r}: one of none, reverse, drop")
