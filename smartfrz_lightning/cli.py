"""The command ``smartfrz``, also installed as ``lightning``: LightningCLI with our callbacks by their short names."""

import sys

from lightning.pytorch.cli import ArgsType, LightningCLI

import smartfrz_lightning  # noqa: F401  so that its callbacks are known by their short names
from smartfrz_lightning.benchmark.command import benchmark_command


def main(args: ArgsType = None) -> None:
    """Run LightningCLI with any module, data module and callback given by ``class_path``, or ``benchmark``.

    Args:
        args: Command-line arguments; those of the process by default.
    """
    if args is None and sys.argv[1:2] == ["benchmark"]:
        benchmark_command(sys.argv[2:])
        return
    # A rerun may write into the same folder: its config.yaml is replaced.
    about = {"description": "Lightning's command line; and smartfrz benchmark --help for methods side by side."}
    LightningCLI(save_config_kwargs={"overwrite": True}, parser_kwargs=about, args=args)


if __name__ == "__main__":
    main()
