"""Results on disk: one JSON line a run, written as soon as the run is done."""

import json
import os
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def read_results(path: Path) -> list[Result]:
    """All results in a file, none if there is no such file; a line that was cut short is left out."""
    if not path.exists():
        return []
    results = []
    for line in path.read_text().splitlines():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return results


def append_result(path: Path, result: Result) -> None:
    """Write a result at the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_short = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * bool(cut_short) + json.dumps(result) + "\n")
        file.flush()
        os.fsync(file.fileno())


def find_result(results: list[Result], run: str, seed: int) -> Result | None:
    """The result of one run."""
    return next((result for result in results if result["run"] == run and result["seed"] == seed), None)


def cost(result: Result, by: str) -> float:
    """What training cost: ``"flops"``, or ``"seconds"``, with the method's overhead and without validation."""
    return float(result["seconds"]["train"]) if by == "seconds" else float(sum(result["timeline"]["spent"].values()))
