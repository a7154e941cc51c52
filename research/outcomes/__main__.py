"""Record the outcomes of many cases, one file each.

    python -m research.outcomes research/configs/images.yaml data data/weights runs/outcomes

Started again, it goes on with the cases that have no file yet. Needs the extra ``benchmark``.
"""

import sys
import traceback
from functools import partial
from pathlib import Path

import torch
import yaml
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress

from research.outcomes.case import draw_cases
from research.outcomes.examples import load_examples
from research.outcomes.record import DEPTHS, MOMENTS, SHORTENED, outcome_path, record_to
from research.workers import in_processes


def main(
    cases: str,
    data: str,
    weights: str,
    output: str,
    groups: list[str] | None = None,
    longest: int | None = None,
    known: str | None = None,
    depths: tuple[float, ...] = DEPTHS,
    later: tuple[float, ...] = MOMENTS,
    shortened: tuple[float, ...] = SHORTENED,
    threads: int = 1,
    device: str = "cpu",
    jobs: int = 1,
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
        depths: Shares of the layers before the head that freeze.
        later: Shares of the run at which they do, besides the start.
        shortened: Lengths of the shortened runs, as shares.
        threads: Threads of PyTorch; several jobs share them, at least one each.
        device: Where the networks train, such as ``cuda``.
        jobs: So many cases at a time, each in a process of its own.
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
        to_do = [case for case in rounds if case.name not in done and not outcome_path(output, case).exists()]
        task = progress.add_task("cases", total=len(rounds), completed=len(rounds) - len(to_do))
        grid = {"depths": depths, "later": later, "shortened": shortened}
        record = partial(record_to, data=data, weights=weights, output=output, device=device, **grid)
        failed = 0
        for case, line in in_processes(record, to_do, jobs):
            if isinstance(line, Exception):
                failed += 1
                traceback.print_exception(line)
            console.print(f"{case.name}: {line}", style="red" if isinstance(line, Exception) else None)
            progress.advance(task)
    if failed:
        sys.exit(f"{failed} of {len(to_do)} cases failed; the same command tries them again")


if __name__ == "__main__":
    auto_cli(main)
