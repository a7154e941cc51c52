"""Wrong use ends in a clear error before the first training step."""

import pytest
import torch
from conftest import Classifier, mlp
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from scripted import ScriptedFreeze
from torch import nn

from smartfrz_lightning import HistoryRecorder, SmartFreezeCallback
from smartfrz_lightning.experiments.images import ImageFolderDataModule
from smartfrz_lightning.experiments.networks import CifarResNet


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"window": 0}, "window=0"),
        ({"sample_size": 0}, "sample_size=0"),
        ({"snapshot_every_n_steps": 0}, "snapshot_every_n_steps=0"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"threshold": 1}, "threshold=1"),
        ({"every_n_epochs": 0}, "every_n_epochs=0"),
        ({"every_n_epochs": 1, "every_n_train_steps": 10}, "give one of them"),
        ({"sample_size": 512}, "sample_size=512"),
    ],
)
def test_arguments(arguments, says):
    with pytest.raises((ValueError, MisconfigurationException), match=says):
        SmartFreezeCallback(**arguments)


class NeverSteps(Classifier):
    def training_step(self, batch, batch_idx):
        raise AssertionError("a training step began")


def test_unknown_pattern(make_trainer):
    with pytest.raises(ValueError, match=r"exclude='net.11'.*close names.*net"):
        make_trainer(SmartFreezeCallback(exclude=["net.11"])).fit(NeverSteps(mlp()))


def test_unknown_pattern_like_nothing(make_trainer):
    with pytest.raises(ValueError, match=r"exclude='\?\?' matches no.*of NeverSteps; its names begin with \['net'"):
        make_trainer(SmartFreezeCallback(exclude=["??"])).fit(NeverSteps(mlp()))


def test_no_trainable_parameter(make_trainer):
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_trainer(SmartFreezeCallback()).fit(NeverSteps(mlp().requires_grad_(False)))


def test_two_freezing_callbacks(make_trainer):
    with pytest.raises(MisconfigurationException, match="in one Trainer"):
        make_trainer(SmartFreezeCallback(), ScriptedFreeze({})).fit(NeverSteps(mlp()))


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_strategies_that_are_not_supported(strategy):
    from types import SimpleNamespace

    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

    from smartfrz_lightning.callbacks.strategies import check_strategy

    kind = FSDPStrategy if strategy == "fsdp" else DeepSpeedStrategy
    with pytest.raises(MisconfigurationException, match=f"{kind.__name__}.*ddp"):
        check_strategy(SimpleNamespace(strategy=kind.__new__(kind)), "SmartFreezeCallback", works_sharded=True)


def test_methods_that_need_whole_parameters():
    from types import SimpleNamespace

    from lightning.pytorch.strategies import ModelParallelStrategy

    from smartfrz_lightning import AutoFreezeCallback, SmartFreezeCallback
    from smartfrz_lightning.callbacks.strategies import check_strategy

    trainer = SimpleNamespace(strategy=ModelParallelStrategy())
    check_strategy(trainer, "SmartFreezeCallback", SmartFreezeCallback.works_sharded)
    with pytest.raises(MisconfigurationException, match="ModelParallelStrategy.*AutoFreezeCallback needs whole ones"):
        check_strategy(trainer, "AutoFreezeCallback", AutoFreezeCallback.works_sharded)


def test_reference_of_another_architecture(make_trainer, tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, path)
    with pytest.raises(ValueError, match="another architecture"):
        make_trainer(HistoryRecorder(str(path))).fit(NeverSteps(mlp()))
    path.write_bytes(b"nothing of use")
    with pytest.raises(ValueError, match="cannot be read"):
        make_trainer(HistoryRecorder(str(path))).fit(NeverSteps(mlp()))
    with pytest.raises(FileNotFoundError, match="no such file"):
        make_trainer(HistoryRecorder(str(tmp_path / "none.ckpt"))).fit(NeverSteps(mlp()))


def test_experiments(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no folder 'train'"):
        ImageFolderDataModule(str(tmp_path))
    with pytest.raises(ValueError, match="depth=21"):
        CifarResNet(21)


def test_a_missing_extra_is_named():
    from smartfrz_lightning.extras import require

    with pytest.raises(ImportError, match=r"smartfrz-lightning\[vision\]"):
        require("a_package_that_is_not_there", "vision")
