"""What freezing came to in recorded runs, at the weights as they were and at their averages.

    python -m research.outcomes.averaged research/results/moments.jsonl data data/weights runs/averaged.jsonl

Trains the run of every line again, restores it at each moment, and freezes every prefix at the averages of its weights.
Started again, it goes on with the lines that are missing. Needs the extra ``benchmark``.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from research.outcomes.outcome import Outcome, Run
from research.outcomes.setup import set_up
from research.outcomes.training import evaluate, train
from research.workers import in_processes


def record(line: str, data: str, weights: str, output: str, moments: Sequence[float]) -> str:
    """Train one run again, with every prefix frozen at its averages.

    Args:
        line: Of a file of recorded runs.
        data: Folder of the data.
        weights: Folder of the weights.
        output: Gets a line.
        moments: When the prefixes freeze, as shares of the run.
    """
    before: dict[str, Any] = json.loads(line)
    case = Outcome.fromdict(before).case
    setup = set_up(case, data, weights)
    steps = [round(share * case.steps) for share in moments]
    kept = train(case, setup.net, setup.data, keep=steps)

    def judged(kind: str, depth: int = 0, moment: int = 0) -> dict[str, Any]:
        return asdict(Run(kind, *evaluate(setup.net, setup.validation).values(), case.steps, depth, moment))

    runs = [judged("full")]
    for depth in sorted({run["depth"] for run in before["runs"] if run["kind"] == "frozen"}):
        for moment in kept:
            front = setup.layers[:depth]
            train(case, setup.net, setup.data, front=front, moment=moment, averaged=True)
            runs.append(judged("averaged", depth, moment.step))
    with Path(output).open("a") as file:
        file.write(json.dumps({"case": before["case"], "runs": runs}) + "\n")
    return f"{case.name}: full {runs[0]['accuracy']:.1f} %"


def main(
    recorded: str,
    data: str,
    weights: str,
    output: str,
    networks: list[str] | None = None,
    moments: tuple[float, ...] = (0.25, 0.45, 0.65),
    jobs: int = 1,
) -> None:
    """Record.

    Args:
        recorded: File of recorded runs, a line of JSON each.
        data: Folder with a folder for each of the cases' ``data``.
        weights: Folder of the networks' weights.
        output: File of the lines.
        networks: Only these.
        moments: When the prefixes freeze, as shares of the run.
        jobs: So many runs at a time.
    """
    torch.set_num_threads(1)
    path = Path(output)
    there = [json.loads(line)["case"] for line in path.read_text().splitlines()] if path.exists() else []
    lines = [(json.loads(line)["case"], line) for line in Path(recorded).read_text().splitlines()]
    to_do = [line for case, line in lines if case not in there and (not networks or case["network"] in networks)]
    work = partial(record, data=data, weights=weights, output=output, moments=moments)
    for _, said in in_processes(work, to_do, jobs):
        print(said, file=sys.stderr, flush=True)


if __name__ == "__main__":
    auto_cli(main)
