"""Results on disk: one JSON line a run, written as soon as the run is done."""

import json
import math
import os
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def read_results(path: Path) -> list[Result]:
    """All results in a file, none if there is no such file; a line that was cut short is left out.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from smartfrz_lightning.benchmark.results import read_results
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "results.jsonl")
        ...     size = path.write_text('{"run": "full", "seed": 1}\\n{"run": "full", "se')
        ...     read_results(path)
        [{'run': 'full', 'seed': 1}]
    """
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
    """Write a result at the end of a file.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from smartfrz_lightning.benchmark.results import append_result, read_results
        >>> with TemporaryDirectory() as folder:
        ...     for seed in (1, 2):
        ...         append_result(Path(folder, "new", "results.jsonl"), {"run": "full", "seed": seed})
        ...     read_results(Path(folder, "new", "results.jsonl"))
        [{'run': 'full', 'seed': 1}, {'run': 'full', 'seed': 2}]
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_short = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * bool(cut_short) + json.dumps(result) + "\n")
        file.flush()
        os.fsync(file.fileno())


def find_result(results: list[Result], run: str, seed: int) -> Result | None:
    """The result of one run.

    Example:
        >>> from smartfrz_lightning.benchmark.results import find_result
        >>> results = [{"run": "full", "seed": 1, "value": 0.8}, {"run": "full", "seed": 2, "value": 0.9}]
        >>> find_result(results, "full", 2)["value"]
        0.9
        >>> find_result(results, "full", 3) is None
        True
    """
    return next((result for result in results if result["run"] == run and result["seed"] == seed), None)


def cost(result: Result, by: str) -> float:
    """What training cost: ``"flops"``, or ``"seconds"`` of training with the method's overhead and without validation.

    Runs that were done beside each other have no times: ``nan``.

    Example:
        >>> from smartfrz_lightning.benchmark.results import cost
        >>> cost({"seconds": {"train": 3.5, "validation": 1, "startup": 2}}, "seconds")
        3.5
    """
    if by == "seconds" and result.get("jobs", 1) > 1:
        return math.nan
    return float(result["seconds"]["train"]) if by == "seconds" else float(sum(result["timeline"]["spent"].values()))


def saved_bytes(result: Result) -> tuple[float, float]:
    """What autograd keeps for the backward pass: mean over the run's steps, and the most.

    Example:
        >>> from smartfrz_lightning.benchmark.results import saved_bytes
        >>> states = [{"step": 0, "saved_bytes": 100}, {"step": 4, "saved_bytes": 20}]
        >>> saved_bytes({"timeline": {"states": states, "steps": 8}})
        (60.0, 100)
    """
    states, steps = result["timeline"]["states"], result["timeline"]["steps"]
    if not states or not steps:
        return float("nan"), float("nan")
    ends = [state["step"] for state in states[1:]] + [steps]
    lengths = [end - state["step"] for state, end in zip(states, ends, strict=True)]
    mean = sum(state["saved_bytes"] * length for state, length in zip(states, lengths, strict=True)) / steps
    return mean, max(state["saved_bytes"] for state in states)
