"""Run many fits in one launch of two processes: starting Python takes longer than the fits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch


def two_processes(worker, cases, folder, survives=True):
    """Outcomes of both ranks by name of the case; the standard error if the processes are to die."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    worker = str(Path(__file__).with_name(worker))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", worker]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command.append(str(folder / "cases.json"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == survives, done.stderr[-3000:]
    if not survives:
        return done.stderr
    return {
        name: [torch.load(folder / name / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)] for name in cases
    }


def run_cases(fit):
    """What a worker does: ``fit(settings, folder)`` returns an outcome, which every rank saves."""
    path = Path(sys.argv[1])
    for name, settings in json.loads(path.read_text()).items():
        print(f"case {name}", file=sys.stderr)
        folder = path.parent / name
        folder.mkdir(exist_ok=True)
        outcome = fit(settings, folder)
        torch.save(outcome, folder / f"rank{torch.distributed.get_rank()}.pt")
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # everything is saved, and gloo's threads now and then abort a process that ends by itself
