"""The command ``smartfrz benchmark``."""

import sys
from collections.abc import Sequence
from dataclasses import fields

from jsonargparse import ActionConfigFile, ArgumentParser
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smartfrz_lightning.benchmark.spec import Benchmark, Published, Run
from smartfrz_lightning.benchmark.suite import run_benchmark


def benchmark_command(args: Sequence[str] | None = None) -> None:
    """Run the benchmark that a config describes; exits with 1 if a run failed."""
    benchmark = read_benchmark(args)
    try:
        done = run_benchmark(benchmark)
    except SystemExit as stop:  # Lightning's answer to SIGTERM, which would pass for success
        sys.exit(stop.code or f"stopped; the same command goes on with {benchmark.output}")
    if not done and rank_zero_only.rank == 0:  # a launcher kills all once one of them fails, the first is not done yet
        sys.exit(1)


def read_benchmark(args: Sequence[str] | None = None) -> Benchmark:
    """The benchmark that a config describes."""
    parser = ArgumentParser(
        prog="smartfrz benchmark",
        description="Run methods x seeds of one experiment, side by side, into one table and picture. Started again, "
        "it goes on where it was stopped.",
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of the benchmark")
    parser.add_class_arguments(Benchmark)
    read = parser.parse_args(args).as_dict()
    # By hand: classes that settings name are those of the experiment, and not to be made here.
    for name, kind in (("methods", Run), ("published", Published)):
        read[name] = {key: kind(**settings) for key, settings in read[name].items()}
    return Benchmark(**{field.name: read[field.name] for field in fields(Benchmark)})
