"""Method cards: what every callback is, when to take it and when not, what it costs, and where it is from.

    python -m research.cards docs/methods.md

They are made of the docstrings.
"""

import inspect
import json
from pathlib import Path

from jsonargparse import auto_cli

from smartfrz_lightning.callbacks.attention import AttentionFreezeCallback
from smartfrz_lightning.callbacks.auto import AutoFreezeCallback
from smartfrz_lightning.callbacks.budget import BudgetFreezeCallback
from smartfrz_lightning.callbacks.grades import GradESFreezeCallback
from smartfrz_lightning.callbacks.gradient_norm import GradientNormFreezeCallback
from smartfrz_lightning.callbacks.interval import IntervalFreezeCallback
from smartfrz_lightning.callbacks.linear import LinearFreezeCallback
from smartfrz_lightning.callbacks.movement import MovementFreezeCallback
from smartfrz_lightning.callbacks.random import RandomFreezeCallback
from smartfrz_lightning.callbacks.similarity import SimilarityFreezeCallback
from smartfrz_lightning.callbacks.smart import SmartFreezeCallback
from smartfrz_lightning.callbacks.static import StaticFreezeCallback

CALLBACKS = (
    SmartFreezeCallback,
    AttentionFreezeCallback,
    StaticFreezeCallback,
    IntervalFreezeCallback,
    LinearFreezeCallback,
    AutoFreezeCallback,
    GradientNormFreezeCallback,
    GradESFreezeCallback,
    BudgetFreezeCallback,
    SimilarityFreezeCallback,
    MovementFreezeCallback,
    RandomFreezeCallback,
)
"""In the order of the cards."""


def card(callback: type) -> str:
    """The card of one callback, as Markdown.

    Args:
        callback: Its class, whose docstring has the list *When*, *When not*, *Cost*, *Source*.

    Raises:
        ValueError: An entry of that list is missing.
    """
    text = inspect.cleandoc(callback.__doc__ or "").partition("\nArgs:\n")[0].rstrip()
    if missing := [entry for entry in ("When", "When not", "Cost", "Source") if f"- **{entry}**" not in text]:
        raise ValueError(f"the docstring of {callback.__name__} says nothing of {', '.join(missing)}")
    text = text.replace("``", "`")
    parameters = [p for p in inspect.signature(callback).parameters.values() if p.kind is not p.VAR_KEYWORD]
    own = [p.name if p.default is p.empty else f"{p.name}={_short(p.default)}" for p in parameters]
    inside = ", ".join(own)
    call = f"{callback.__name__}({inside})"
    if len(call) > 120:
        inside = inside if len(inside) <= 116 else ",\n    ".join(own) + ","  # as ruff would have it
        call = f"{callback.__name__}(\n    {inside}\n)"
    return f"## {callback.__name__}\n\n```python\n{call}\n```\n\n{text}\n"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, str) else repr(value)


def main(output: str) -> None:
    """Write all cards.

    Args:
        output: Markdown file.
    """
    about = "# Methods\n\nMade of the docstrings by `python -m research.cards`.\n"
    found = [card(callback) for callback in CALLBACKS]
    Path(output).write_text("\n".join([about, *found]))


if __name__ == "__main__":
    auto_cli(main)
