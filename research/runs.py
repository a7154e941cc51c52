"""The published runs, ``research/results/runs.jsonl``: a line a run, added from the folders of ``smartfrz benchmark``.

python -m research.runs runs/benchmark/resnet32_long resnet32_long
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from smartfrz_lightning.benchmark.frontier import Frontier

RUNS = Path(__file__).parent / "results" / "runs.jsonl"


class Runs:
    """Published runs, each compared with full training of the same case and seed.

    Args:
        path: The file.
    """

    def __init__(self, path: Path = RUNS) -> None:
        self.rows = [json.loads(line) for line in path.read_text().splitlines()]

    def of(self, case: str, run: str, version: str = "0.3.0", variant: str = "") -> list[dict[str, Any]]:
        """The runs of one method, by seed."""
        wanted = {"case": case, "run": run, "version": version, "variant": variant}
        return sorted((r for r in self.rows if wanted.items() <= r.items()), key=lambda row: row["seed"])

    def full(self, case: str, version: str = "0.3.0", variant: str = "") -> dict[int, dict[str, Any]]:
        """Full training of a case, by seed: of that variant or version, else of the one before (it is plain)."""
        rows = [
            *self.of(case, "full", "0.2.0"),
            *self.of(case, "full", version),
            *self.of(case, "full", version, variant),
        ]
        return {row["seed"]: row for row in rows}

    def points(self, case: str, run: str, version: str = "0.3.0", variant: str = "") -> list[float]:
        """Points of the metric (× 100) above full training, a seed each."""
        return self._against(case, run, version, variant, lambda row, full: 100 * (row["value"] - full["value"]))

    def flops(self, case: str, run: str, version: str = "0.3.0", variant: str = "") -> list[float]:
        """Training FLOPs relative to full training."""
        return self._against(case, run, version, variant, lambda row, full: row["flops"])

    def time(self, case: str, run: str, version: str = "0.3.0", variant: str = "") -> list[float]:
        """Seconds of training relative to full training beside it, of the seeds where no other work went on."""
        full = {row["seed"]: row["seconds"] for row in self.of(case, "full", version, variant) if not row["shared"]}
        own = [row for row in self.of(case, run, version, variant) if not row["shared"]]
        pairs = [(row["seconds"], row.get("full_seconds") or full.get(row["seed"])) for row in own]
        return [seconds / whole for seconds, whole in pairs if whole]

    def above(self, case: str, run: str) -> list[float]:
        """Points above full training that was shortened to the same FLOPs; empty where that was not run."""
        found = []
        for row in self.of(case, run):
            seed = row["seed"]
            beside = (r for r in self.rows if (r["case"], r["seed"], r["variant"]) == (case, seed, ""))
            shorter = [r for r in beside if r["run"].startswith("full_")]
            full = self.full(case).get(seed)
            if full is not None and shorter:
                frontier = Frontier({1.0: full["value"], **{one["flops"]: one["value"] for one in shorter}})
                there = frontier.at(row["flops"])
                found += [] if there is None else [100 * (row["value"] - there)]
        return found

    def _against(self, case: str, run: str, version: str, variant: str, what: Callable) -> list[float]:
        full = self.full(case, version, variant)
        return [what(row, full[row["seed"]]) for row in self.of(case, run, version, variant) if row["seed"] in full]


def spread(values: list[float], digits: int = 2, signed: bool = False) -> str:
    """Mean ± standard deviation, or ``–`` without values."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def add(folder: str, case: str, version: str = "0.3.0", variant: str = "", shared: bool = False) -> None:
    """Add the runs in a benchmark's folder that are not there yet.

    Args:
        folder: With ``results.jsonl``.
        case: Name of the case.
        version: Of this package.
        variant: What was not as by default.
        shared: The core did other work too, so that the seconds tell nothing.
    """
    kept = Runs()
    results = [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text().splitlines()]
    with RUNS.open("a") as file:
        for one in results:
            if any(row["seed"] == one["seed"] for row in kept.of(case, one["run"], version, variant)):
                continue
            timeline = one["timeline"]
            beside = (other for other in results if other["seed"] == one["seed"])
            full = next((other for other in beside if other["run"] == "full"), one)
            whole = full if full is not one else kept.full(case, version, variant).get(one["seed"], one)
            per_step = sum(timeline["full"].values()) / one["steps"]
            row = {
                "case": case,
                "version": version,
                "variant": variant,
                "run": one["run"],
                "seed": one["seed"],
                "value": one["value"],
                "loss": one["metrics"].get("val_loss"),
                "flops": sum(timeline["spent"].values()) / (per_step * whole["steps"]),
                "seconds": one["seconds"]["train"],
                "full_seconds": None if full is one else full["seconds"]["train"],  # on the same machine
                "steps": one["steps"],
                "frozen_at_the_end": len(_frozen(timeline["events"])),
                "notes": timeline["notes"],
                "versions": one["versions"],
                "hardware": one["hardware"],
                "shared": shared,
            }
            file.write(json.dumps(row) + "\n")


def _frozen(events: list[dict[str, Any]]) -> set[str]:
    frozen: set[str] = set()
    for event in events:
        (frozen.discard if event["kind"] == "thaw" else frozen.add)(event["layer"])
    return frozen


if __name__ == "__main__":
    auto_cli(add)
