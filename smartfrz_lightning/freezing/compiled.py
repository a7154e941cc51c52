"""What freezing needs under ``torch.compile``: eager measuring, recompiling and room for it."""

import contextlib

import torch

from smartfrz_lightning.private.pytorch import compile_config


def eager() -> contextlib.AbstractContextManager:
    """Run what is compiled without its compiled code, in which no operation can be seen."""
    return torch.compiler.set_stance("force_eager")


_DEFAULT_LIMITS: dict[str, int] = {}


def allow_recompiling(patterns: int) -> None:
    """Make room for the graphs of so many patterns of what trains, as past its limit PyTorch runs eager without a word.

    A compiled function is traced anew for every pattern of what trains in it, once for training and once for
    validation. The limits stay: after the fit, the graphs are still there.
    """
    config = compile_config()
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        default = _DEFAULT_LIMITS.setdefault(name, getattr(config, name))
        setattr(config, name, max(getattr(config, name), default + 2 * patterns))


def forget_graphs() -> None:
    """Make compiled functions notice a freeze where PyTorch does not: before 2.13 their guards overlook parameters.

    Their gradients were right all the same, but computed for what is frozen too.
    """
    if torch.__version__ < "2.13.0.dev0":
        torch.compiler.reset()
