"""A benchmark small enough for a test."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


CONFIGS = ROOT / "configs" / "benchmark"


def small(tmp_path, methods, **settings):
    """A benchmark of the quick config's experiment, in a still smaller form."""
    overrides = {
        "trainer.max_epochs": 4,
        "trainer.check_val_every_n_epoch": 4,
        "trainer.limit_train_batches": 8,
        "trainer.limit_val_batches": 1,
        "model.init_args.network.init_args.width": 4,
    }
    spec = {
        "experiment": [str(CONFIGS / "experiments" / "digits.yaml")],
        "methods": methods,
        "seeds": [1, 2],
        "overrides": overrides,
        "output": str(tmp_path / "out"),
    }
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump({**spec, **settings}))
    return path
