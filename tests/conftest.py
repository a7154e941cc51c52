import logging
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports it: nothing here may wait for a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes share two cores

import pytest
import torch
from lightning.pytorch import Trainer

warnings.filterwarnings("ignore", ".*LeafSpec.*")


def settings_of_the_process():
    return {
        "log levels": [logging.getLogger(name).level for name in (None, "lightning.pytorch", "lightning.fabric")],
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "type": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(autouse=True)
def settings_stay():
    """What a test left behind would be met by those that happen to follow in the same process."""
    before = settings_of_the_process()
    yield
    assert settings_of_the_process() == before


@pytest.fixture
def make_trainer(tmp_path):
    def make(*callbacks, **kwargs):
        defaults = {
            "max_epochs": 3,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "num_sanity_val_steps": 0,
        }
        return Trainer(**{**defaults, **kwargs}, callbacks=list(callbacks))

    return make
