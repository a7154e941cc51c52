"""What a benchmark consists of, as its YAML file says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """How one kind of run differs from the experiment.

    In ``overrides`` and ``arguments``, ``{name}`` stands for the folder of the run of that name at the same seed:
    ``{full}/last.ckpt`` is the finished model of the method ``full``, ``{smart}/freeze_timeline.csv`` what ``smart``
    froze when.

    Attributes:
        callback: The freezing callback, by short name or import path; without one everything trains.
        arguments: Its arguments.
        overrides: Settings of the experiment to replace, by dotted name such as ``model.schedule``.
        share: Train everything, but only for this share of the baseline's steps, with a schedule of that length.

    Raises:
        ValueError: ``share`` is out of range, or given with a callback.
    """

    callback: str | None = None
    # With dict[str, Any], jsonargparse would fill in what a class has by default.
    arguments: dict = field(default_factory=dict)
    overrides: dict = field(default_factory=dict)
    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and (not 0 < self.share < 1 or self.callback is not None):
            raise ValueError(f"share={self.share}: must lie between 0 and 1, in a run without a callback")

    @property
    def needs(self) -> set[str]:
        """Names of the runs that must be done before."""
        return set(re.findall(r"\{(\w+)\}", repr([self.arguments, self.overrides])))


@dataclass
class Published:
    """What a publication reports for a method, to stand beside the measured figures.

    Attributes:
        value: The metric, in percent.
        sd: Its spread.
        seconds: Time of training, on the publication's hardware.
        tflops: Computation of training.
    """

    value: float
    sd: float | None = None
    seconds: float | None = None
    tflops: float | None = None


@dataclass
class Benchmark:
    """Methods and seeds to run on one experiment.

    Attributes:
        experiment: LightningCLI configs of the experiment, merged in this order.
        methods: What to compare, by name.
        seeds: Every method runs once with each.
        metric: What validation logs and the table reports; higher is better.
        output: Folder of the results.
        baseline: The method to which the others are compared.
        overrides: Settings of the experiment to replace in every method's runs; those of a method come on top.
        frontier: Shares of the baseline's steps for which everything is trained as well, under the name ``full_0.5``
            where the baseline is ``full``: what a method is worth is how far it lies above these at equal cost.
        published: What a publication reports, by name of the method; stands beside the measured figures in the table,
            in a row of its own if the method is not run here.
    """

    experiment: list[str]
    methods: dict[str, Run]
    seeds: list[int]
    metric: str = "val_accuracy"
    output: str = "runs/benchmark"
    baseline: str = "full"
    overrides: dict = field(default_factory=dict)
    frontier: list[float] = field(default_factory=list)
    published: dict[str, Published] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: give at least one, each once")
        if self.baseline not in self.methods:
            raise ValueError(f"baseline={self.baseline!r} is not one of methods={sorted(self.methods)}")
        for share in self.frontier:
            if not 0 < share < 1:
                raise ValueError(f"frontier={self.frontier}: give shares of the baseline's steps, between 0 and 1")
        shorter = {f"{self.baseline}_{share:g}": Run(share=share) for share in sorted(self.frontier)}
        if taken := set(shorter) & set(self.methods):
            raise ValueError(f"methods and frontier share the names {sorted(taken)}: rename one of them")
        self.methods = {**self.methods, **shorter}
        for name, run in self.methods.items():
            if unknown := run.needs - set(self.methods):
                raise ValueError(f"methods.{name} refers to {sorted(unknown)}, which is no method of this benchmark")
        for path in self.experiment:
            if not Path(path).is_file():
                raise FileNotFoundError(f"experiment={path!r}: no such file; paths start at the working directory")
        self.methods = {
            name: replace(run, overrides={**self.overrides, **run.overrides}) for name, run in self.methods.items()
        }
        self.order()

    def order(self) -> list[str]:
        """Names of the methods so that each comes after those it needs, otherwise as given."""
        try:
            needs = {name: sorted(self.needs(run)) for name, run in self.methods.items()}
            return list(TopologicalSorter(needs).static_order())
        except CycleError as error:
            raise ValueError(f"methods wait for each other: {' -> '.join(error.args[1])}") from error

    def needs(self, run: Run) -> set[str]:
        """Names of the runs that must be done before; for a shortened one the baseline too."""
        return run.needs | ({self.baseline} if run.share else set())

    @property
    def shortened(self) -> list[str]:
        """Names of the runs that make the frontier, besides the baseline."""
        return [name for name, run in self.methods.items() if run.share is not None]

    def schedule(self) -> list[tuple[str, Run, int]]:
        """All runs in their order: name, run, seed. Methods alternate, so that a drifting machine hits all alike."""
        return [(name, self.methods[name], seed) for seed in self.seeds for name in self.order()]

    def folder(self, name: str, seed: int) -> Path:
        """Where a run keeps its files."""
        return Path(self.output) / f"seed{seed}/{name}"

    def fill(self, value: Any, seed: int) -> Any:
        """Replace ``{name}`` by folders, anywhere in a setting."""
        if isinstance(value, dict):
            return {key: self.fill(entry, seed) for key, entry in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self.fill(entry, seed) for entry in value]
        if isinstance(value, str):
            return re.sub(r"\{(\w+)\}", lambda match: str(self.folder(match[1], seed)), value)
        return value
