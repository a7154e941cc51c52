"""The command ``smartfrz``, also installed as ``lightning``: LightningCLI with our callbacks by their short names."""

import sys

from lightning.pytorch.cli import ArgsType, LightningCLI

import smartfrz_lightning  # noqa: F401  so that its callbacks are known by their short names
from smartfrz_lightning.benchmark.command import benchmark_command


def main(args: ArgsType = None) -> None:
    """Run LightningCLI with any module, data module and callback given by ``class_path``, or ``benchmark``.

    Args:
        args: Command-line arguments; those of the process by default.

    Example:
        >>> from contextlib import redirect_stdout
        >>> from io import StringIO
        >>> from tempfile import TemporaryDirectory
        >>> from smartfrz_lightning.cli import main
        >>> what = ["fit", "--model=lightning.pytorch.demos.boring_classes.BoringModel", "--trainer.max_steps=2"]
        >>> how = ["--trainer.accelerator=cpu", "--trainer.callbacks=StaticFreezeCallback", "--trainer.logger=false"]
        >>> with TemporaryDirectory() as folder, redirect_stdout(StringIO()) as out:
        ...     main([*what, *how, f"--trainer.default_root_dir={folder}"])
        >>> "0 of 1 layers frozen" in out.getvalue()  # the only one leads to the loss
        True
    """
    if args is None and sys.argv[1:2] == ["benchmark"]:
        benchmark_command(sys.argv[2:])
        return
    # A rerun may write into the same folder: its config.yaml is replaced.
    about = {"description": "Lightning's command line; and smartfrz benchmark --help for methods side by side."}
    LightningCLI(save_config_kwargs={"overwrite": True}, parser_kwargs=about, args=args)


if __name__ == "__main__":
    main()
