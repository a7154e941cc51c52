"""The command ``smartfrz``: LightningCLI with our callbacks by their short names."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.cli import ArgsType, LightningCLI

from smartfrz_lightning import (  # callbacks are known by their short names
    FreezingCallback,
    PlanCallback,
    SmartFreezeCallback,
)
from smartfrz_lightning.benchmark.suite import benchmark_command
from smartfrz_lightning.private.trainer import FitCLI, callbacks_of
from smartfrz_lightning.stages import LaterStage, StartStage


def main(args: ArgsType = None) -> None:
    """Run LightningCLI with any module, data module and callback given by ``class_path``, or ``benchmark``.

    Args:
        args: Command-line arguments; those of the process by default.
    """
    if args is None:
        sys.path.insert(0, str(Path.cwd()))  # modules of the user's: a console script does not look there
        for name, command in (("benchmark", benchmark_command), ("plan", plan_command)):
            if sys.argv[1:2] == [name]:
                command(sys.argv[2:])
                return
    # A rerun may write into the same folder: its config.yaml is replaced.
    about = {
        "description": "Lightning's command line; and smartfrz plan --help for what freezing would save, "
        "smartfrz benchmark --help for methods side by side."
    }
    LightningCLI(save_config_kwargs={"overwrite": True}, parser_kwargs=about, args=args)


def plan_command(args: Sequence[str]) -> None:
    """Take some eighty steps of the training that a config describes, and show what freezing would save in it."""
    with warnings.catch_warnings():  # the arguments are those of the command line, less the word plan
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        cli = FitCLI(args=list(args), run=False, save_config_callback=None)
    ours = [one for one in callbacks_of(cli.trainer) if isinstance(one, FreezingCallback)]
    stages = next((one.stages for one in ours if isinstance(one, SmartFreezeCallback)), {})
    start, later = stages.get("start"), stages.get("later")
    plan = PlanCallback(
        start if isinstance(start, StartStage) else None,
        later if isinstance(later, LaterStage) else not stages,
        exclude=[pattern for one in ours for pattern in one.exclude],
    )
    # Nothing is validated, so nothing can be monitored; and nothing is to be saved.
    idle = (FreezingCallback, EarlyStopping, Checkpoint)
    others = [one for one in callbacks_of(cli.trainer) if not isinstance(one, idle)]
    setattr(cli.trainer, "callbacks", [*others, plan])  # noqa: B010  # its class does not declare them
    cli.trainer.limit_val_batches = cli.trainer.num_sanity_val_steps = 0
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)


if __name__ == "__main__":
    main()
