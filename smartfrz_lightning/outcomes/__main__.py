"""Record the outcomes of many cases, one file each.

    python -m smartfrz_lightning.outcomes configs/outcomes/images.yaml data data/weights runs/outcomes

Started again, it goes on with the cases that have no file yet. Needs the extra ``benchmark``.
"""

import sys
import time
from pathlib import Path

import torch
import yaml
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress

from smartfrz_lightning.outcomes.case import draw_cases
from smartfrz_lightning.outcomes.examples import load_examples
from smartfrz_lightning.outcomes.record import record_case


def main(
    cases: str,
    data: str,
    weights: str,
    output: str,
    groups: list[str] | None = None,
    longest: int | None = None,
    known: str | None = None,
    threads: int = 1,
) -> None:
    """Record cases.

    Args:
        cases: File of groups of cases to draw.
        data: Folder with a folder for each of the cases' ``data``.
        weights: Folder of the networks' weights.
        output: Folder of the outcomes.
        groups: Only these, by name.
        longest: Only cases of at most so many steps; the others can be recorded another time.
        known: Condensed file of cases that are not recorded again.
        threads: Threads of PyTorch.
    """
    torch.set_num_threads(threads)
    named = yaml.safe_load(Path(cases).read_text())
    chosen = {name: named[name] for name in groups} if groups else named
    # Round by round through the groups: what is there after any time covers all of them.
    short = longest or float("inf")
    drawn = [[case for case in draw_cases([group]) if case.steps <= short] for group in chosen.values()]
    rounds = [group[number] for number in range(max(map(len, drawn))) for group in drawn if number < len(group)]
    done = {one.outcome.case.name for one in load_examples(known)} if known else set()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        for case in progress.track(rounds):
            path = Path(output) / f"{case.name}.safetensors"
            if path.exists() or case.name in done:
                continue
            began = time.perf_counter()
            outcome = record_case(case, data, weights)
            outcome.save(path)
            best = max((run for run in outcome.runs if run.kind == "frozen"), key=lambda run: run.accuracy)
            console.print(
                f"{case.name}: full {outcome.full.accuracy:.1f} %, best front {best.depth}/{len(outcome.layers)} from "
                f"step {best.moment} on {best.accuracy:.1f} %, {time.perf_counter() - began:.0f} s"
            )


if __name__ == "__main__":
    auto_cli(main)
