"""Train recorded cases again with a freezing callback, on the same batches: points and FLOPs against the recorded run.

    python -m research.outcomes.methods runs/outcomes data data/weights runs/methods.jsonl --methods '{smart: {}}'

A method is a name and arguments of ``SmartFreezeCallback``; ``later`` holds those of its later stage. Started
again, it goes on with what is not there yet. Needs the extra ``benchmark``.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli

from research.outcomes.outcome import Outcome
from research.outcomes.setup import set_up
from research.outcomes.training import batch_at, evaluate, learning_rate, make_optimizer, rate_groups
from smartfrz_lightning import Freezer, SmartFreezeCallback
from smartfrz_lightning.stages import LaterStage


def run(outcome: Outcome, data: str, weights: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Train one case.

    Args:
        outcome: The recorded case.
        data: Folder of the data.
        weights: Folder of the weights.
        arguments: Of ``SmartFreezeCallback``.
    """
    case = outcome.case
    setup = set_up(case, data, weights)
    net, batches = setup.net, max(1, len(setup.data[0]) // case.batch_size)
    arguments = dict(arguments)
    if later := arguments.pop("later", None):
        arguments["later"] = LaterStage(**later)
    method = SmartFreezeCallback(**arguments)
    optimizer = make_optimizer(case, rate_groups(case, net.train()))

    def training_step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(net(x), y)

    def set_rates(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(case, step, case.steps) * group["times"]

    set_rates(0)
    freezer = Freezer(net, optimizer, method, batches, case.steps, training_step)
    began = time.perf_counter()
    for step in range(case.steps):
        torch.manual_seed(case.seed * 104729 + step)
        x, y = batch_at(case, setup.data, step)
        with freezer.batch(x):
            optimizer.zero_grad()
            freezer.training_step(x, y).backward()
            optimizer.step()
            set_rates(step + 1)
        if (step + 1) % batches == 0:
            freezer.end_epoch(last=step + 1 == case.steps)
    freezer.end()
    seconds = time.perf_counter() - began
    events: dict[int, int] = {}
    for event in freezer.timeline.events:
        events[event.step] = events.get(event.step, 0) + (1 if event.kind == "freeze" else -1)
    return {
        "case": case.name,
        "points": round(evaluate(net, setup.validation)["accuracy"] - outcome.full.accuracy, 2),
        "flops": round(1 - freezer.timeline.saved, 4),
        "seconds": round(seconds, 1),
        "events": events,
        "notes": freezer.timeline.notes,
    }


def main(outcomes: str, data: str, weights: str, output: str, methods: dict[str, Any] | None = None) -> None:
    """Train every recorded case with every method.

    Args:
        outcomes: Folder of the recorded cases.
        data: Folder of the data.
        weights: Folder of the weights.
        output: File that gets a line a run.
        methods: Arguments by name; the default alone by default.
    """
    torch.set_num_threads(1)
    path = Path(output)
    done = (
        {(row["case"], row["method"]) for row in map(json.loads, path.read_text().splitlines())}
        if path.exists()
        else set()
    )
    for name, arguments in (methods or {"smart": {}}).items():
        for file in sorted(Path(outcomes).glob("*.safetensors")):
            outcome = Outcome.load(file)
            if (outcome.case.name, name) in done:
                continue
            row = {"method": name, **run(outcome, data, weights, arguments)}
            with path.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(f"{name} {row['case']}: {row['points']:+.1f} at {row['flops']:.2f}", flush=True)


if __name__ == "__main__":
    auto_cli(main)
