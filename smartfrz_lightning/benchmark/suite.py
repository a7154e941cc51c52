"""The command ``smartfrz benchmark``: what is not done yet, in order, with progress; then the table and the picture."""

import logging
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from importlib import import_module
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from smartfrz_lightning.benchmark.picture import accuracy_cost
from smartfrz_lightning.benchmark.results import Result, append_result, find_result, read_results
from smartfrz_lightning.benchmark.run import SettingsError, digest, log_file, processes, run_once
from smartfrz_lightning.benchmark.spec import Benchmark, Published, Run
from smartfrz_lightning.benchmark.table import compare, to_markdown, to_rich


def benchmark_command(args: Sequence[str] | None = None) -> None:
    """Run the benchmark that a config describes; exits with 1 if a run failed."""
    benchmark = read_benchmark(args)
    try:
        done = run_benchmark(benchmark)
    except SettingsError as error:
        sys.exit(f"smartfrz benchmark: {error}")
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
    try:
        # By hand: classes that settings name are those of the experiment, and not to be made here.
        for name, kind in (("methods", Run), ("published", Published)):
            read[name] = {key: kind(**settings) for key, settings in read[name].items()}
        return Benchmark(**{field.name: read[field.name] for field in fields(Benchmark)})
    except (TypeError, ValueError, OSError) as error:
        parser.error(str(error))


def run_benchmark(benchmark: Benchmark) -> bool:
    """Do every run that has no result yet, then write the table and the picture; returns whether all runs are done."""
    console = Console(file=sys.stderr, quiet=rank_zero_only.rank > 0)  # a run has its own, which is the log

    def tell(text: str, style: str = "red") -> None:
        console.print(text, style=style, markup=False, highlight=False)

    path = Path(benchmark.output) / "results.jsonl"
    results = read_results(path)
    _check_callbacks(benchmark)
    _check_digests(benchmark, results)
    schedule, failed = benchmark.schedule(), []
    to_do = [one for one in schedule if find_result(results, one[0], one[2]) is None]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        overall = progress.add_task("runs", total=len(schedule), completed=len(schedule) - len(to_do))
        epochs = progress.add_task("epochs")

        def show(trainer: Trainer) -> None:
            epoch, logged = trainer.current_epoch + 1, trainer.callback_metrics
            progress.update(epochs, completed=epoch, total=trainer.max_epochs, refresh=True)
            if epoch == trainer.check_val_every_n_epoch and benchmark.metric not in logged:
                tell(f"metric={benchmark.metric!r} is not there after the first validation: {sorted(logged)}")

        while ready := next((one for one in to_do if not _missing(benchmark, results, *one[1:])), None):
            name, run, seed = ready
            to_do.remove(ready)
            progress.update(overall, description=f"{name}, seed {seed}")
            progress.reset(epochs, description="epochs")
            try:
                result = _do(benchmark, name, run, seed, _length(benchmark, results, run, seed), show)
            except Exception as error:
                if processes() > 1 and not isinstance(error, SettingsError):
                    raise  # the others may be in the middle of the run, waiting for this process
                log = log_file(benchmark.folder(name, seed))
                failed.append(f"failed: {name}, seed {seed}: {error} (see {log})")
                tell(failed[-1])
                continue
            finally:
                progress.advance(overall)
            if rank_zero_only.rank == 0:
                append_result(path, result)
                if not console.is_terminal:  # where no bar moves
                    tell(f"{name}, seed {seed}: {result['value']:.4f} in {result['seconds']['train']:.0f} s", "")
            results.append(result)
        waiting: dict[str, list[str]] = {}
        for name, run, seed in to_do:
            waiting.setdefault(_missing(benchmark, results, run, seed), []).append(f"{name}, seed {seed}")
    if rank_zero_only.rank == 0:
        asked = [r for r in results if r["run"] in benchmark.methods and r["seed"] in benchmark.seeds]
        _show(benchmark, asked)
    for line in failed:  # once more, as hours may have passed
        tell(line)
    for missing, names in waiting.items():
        tell(f"not run, as {missing} is missing: {'; '.join(names)}")
    return not failed and not waiting


def _do(
    benchmark: Benchmark, name: str, run: Run, seed: int, steps: int | None, on_epoch: Callable[[Trainer], None]
) -> Result:
    folder = benchmark.folder(name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as levels:  # no line of Lightning's in every run; whoever calls from Python has its log back
        for logger in map(logging.getLogger, ("lightning.pytorch", "lightning.fabric")):
            levels.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.WARNING)
        try:
            return run_once(benchmark, name, run, seed, steps, on_epoch)
        except Exception:
            with log_file(folder).open("a") as log:
                traceback.print_exc(file=log)
            raise


def _show(benchmark: Benchmark, results: list[Result]) -> None:
    if not results:
        return
    rows = compare(results, benchmark)
    (Path(benchmark.output) / "table.md").write_text(to_markdown(rows))
    accuracy_cost(results, benchmark).savefig(Path(benchmark.output) / "accuracy_cost.png", dpi=130)
    shown = to_rich(rows, f"Relative to {benchmark.baseline!r} at the same seed")
    Console(width=max(140, Console().width)).print(shown)
    Console().print(f"results, table and picture: {benchmark.output}")


def _check_callbacks(benchmark: Benchmark) -> None:
    """What is misspelled is an error before the first run."""
    for text in (Path(path).read_text() for path in benchmark.experiment):
        for module in re.findall(r"class_path: *([\w.]+)\.\w+", text):
            with suppress(Exception):  # which the run will tell
                import_module(module)  # the short names of its callbacks are known then
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback", fail_untyped=False)
    for name, run in benchmark.methods.items():
        if run.callback is not None:
            arguments = {"report": "", **benchmark.fill(run.arguments, benchmark.seeds[0])}  # every run is given one
            try:
                parser.parse_object({"callback": {"class_path": run.callback, "init_args": arguments}})
            except ArgumentError as error:
                raise SettingsError(f"methods.{name}: {error}") from error


def _check_digests(benchmark: Benchmark, results: list[Result]) -> None:
    for name, run, seed in benchmark.schedule():
        result = find_result(results, name, seed)
        if result is not None and result["digest"] != digest(benchmark, run):
            raise SettingsError(
                f"output={benchmark.output!r} holds a result of {name!r} with other settings, or of another version of "
                "the code or the predictor: choose another output, or delete that folder"
            )


def _missing(benchmark: Benchmark, results: list[Result], run: Run, seed: int) -> str:
    """The runs that this one needs and that have no result."""
    missing = [name for name in sorted(benchmark.needs(run)) if find_result(results, name, seed) is None]
    return " and ".join(f"{name} (seed {seed})" for name in missing)


def _length(benchmark: Benchmark, results: list[Result], run: Run, seed: int) -> int | None:
    """Steps of a shortened run: a share of the baseline's."""
    if run.share is None:
        return None
    full = find_result(results, benchmark.baseline, seed)
    assert full is not None, "it is needed by this run, and so was done before"
    return max(1, round(run.share * full["steps"]))
