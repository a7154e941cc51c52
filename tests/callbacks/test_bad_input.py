"""Wrong use ends in a clear error before the first training step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import Classifier, mlp
from scripted import ScriptedFreeze
from torch import nn

from smartfrz_lightning import (
    AttentionFreezeCallback,
    AutoFreezeCallback,
    BudgetFreezeCallback,
    Freezer,
    HistoryRecorder,
    IntervalFreezeCallback,
    PlanCallback,
    SimilarityFreezeCallback,
    SmartFreezeCallback,
    StaticFreezeCallback,
)
from smartfrz_lightning.callbacks.strategies import check_strategy
from smartfrz_lightning.predictor import AttentionPredictor
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.stages import LaterStage, Schedule, StartStage


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        (AttentionFreezeCallback, {"window": 0}, "window=0"),
        (AttentionFreezeCallback, {"snapshot_every_n_steps": 0}, "snapshot_every_n_steps=0"),
        (AttentionFreezeCallback, {"window": 2.5}, "window=2.5: must be a whole number of at least 2"),
        (AttentionFreezeCallback, {"every_n_epochs": 0}, "every_n_epochs=0"),
        (AttentionFreezeCallback, {"every_n_epochs": 1.5}, "every_n_epochs=1.5: must be a whole number"),
        (AutoFreezeCallback, {"every_n_train_steps": 0}, "every_n_train_steps=0"),
        (PlanCallback, {"start": True}, "start=True: must be a StartStage"),
        (StaticFreezeCallback, {"layers": float("nan")}, "layers=nan: give a whole number"),
        (AttentionFreezeCallback, {"every_n_epochs": 1, "every_n_train_steps": 10}, "give one of them"),
        (AttentionFreezeCallback, {"threshold": "0.8"}, "threshold='0.8': must be a number between 0 and 1"),
        (AttentionFreezeCallback, {"predictor": str(StartPredictor.shipped)}, "is no smartfrz-predictor of version 1"),
        (LaterStage, {"predictor": str(StartPredictor.shipped)}, "is no smartfrz-later-predictor"),
        (BudgetFreezeCallback, {"budget": None}, "budget=None: must be a number between 0 and 1"),
        (IntervalFreezeCallback, {"flops_reduction": "0.3"}, "flops_reduction='0.3': must be a number between 0 and 1"),
        (LaterStage, {"threshold": 1}, "threshold=1: must be a number between 0 and 1"),
        (Schedule, {"kept": 40}, "kept=40: must lie between 0 and 1"),
        (Schedule, {"short": 2000}, "short=2000 and long=1500: must be above 0, and long the larger"),
        (SmartFreezeCallback, {"threshold": 0.0}, "threshold=0.0"),
        (SmartFreezeCallback, {"threshold": 1}, "threshold=1"),
        (SmartFreezeCallback, {"start": False, "threshold": 0}, "threshold=0"),
        (SmartFreezeCallback, {"threshold": "0.8"}, "threshold='0.8': must be a number"),
        (SmartFreezeCallback, {"start": "later"}, "start='later': must be True, False or a Stage"),
        (SmartFreezeCallback, {"verify": "yes"}, "verify='yes': must be True, False or a Stage"),
        (SmartFreezeCallback, {"save": 1.5}, "save=1.5: must be a number between 0 and 1"),
        (SmartFreezeCallback, {"later": False, "save": 0.4}, "save=0.4: belongs to the later stage"),
        (SmartFreezeCallback, {"start": False, "save": 0.4, "threshold": 0.9}, "threshold=0.9: belongs to the start"),
        (SmartFreezeCallback, dict.fromkeys(("start", "verify", "later"), False), "nothing would ever freeze"),
        (SmartFreezeCallback, {"report": 3}, "report=3: must be True, False or a folder"),
        (SmartFreezeCallback, {"exclude": 3}, "exclude=3: give a pattern"),
        (StaticFreezeCallback, {"layers": ["conv"]}, r"layers=\['conv'\]: give a whole number"),
        (StartStage, {"probe_steps": 1}, "probe_steps=1: must be a whole number of at least 2"),
        (StartStage, {"probe_steps": 2.5}, "probe_steps=2.5: must be a whole number"),
        (StartStage, {"predictor": str(AttentionPredictor.shipped)}, "is no smartfrz-start-predictor of version 2"),
    ],
)
def test_arguments(kind, arguments, says):
    with pytest.raises(ValueError, match=says):
        kind(**arguments)


def test_numbers_of_numpy_as_arguments_and_in_a_checkpoint(make_trainer, tmp_path):
    stage = StartStage(threshold=np.float32(0.9), probe_steps=np.int64(4))
    default = SmartFreezeCallback(stage, save=np.float32(0.25))
    for freezer in (IntervalFreezeCallback(np.float32(0.25), np.int64(2)), default):
        trainer = make_trainer(freezer, max_epochs=2)
        trainer.fit(Classifier(mlp()))
        trainer.save_checkpoint(tmp_path / "two.ckpt")
        make_trainer(freezer, max_epochs=3).fit(Classifier(mlp()), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    net = mlp()
    freezer = Freezer(net, torch.optim.SGD(net.parameters(), 0.1), SmartFreezeCallback(), total_batches=np.int64(60))
    with freezer.batch():
        net(torch.rand(8, 12)).sum().backward()
    torch.save(freezer.state_dict(), tmp_path / "loop.pt")
    freezer.load_state_dict(torch.load(tmp_path / "loop.pt"))


@pytest.mark.parametrize("length", [None, 0, -5])
def test_the_length_of_a_loop(length):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for name in ("total_batches", "batches_per_epoch"):
        with pytest.raises(ValueError, match=f"{name}={length}: must be a number above 0, math.inf where"):
            Freezer(net, optimizer, SmartFreezeCallback(), **{name: length})


def test_the_optimizers_of_a_loop_train_its_model():
    net, other = mlp(), mlp()
    elsewhere = torch.optim.SGD(other.parameters(), 0.1)
    with pytest.raises(ValueError, match="optimizers: none of them trains a parameter of Sequential"):
        Freezer(net, elsewhere, SmartFreezeCallback())
    Freezer(net, [elsewhere, torch.optim.SGD(net.parameters(), 0.1)], SmartFreezeCallback())


def test_a_module_with_an_optimizer_of_its_own_trains(make_trainer):
    class Own(Classifier):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

        def configure_optimizers(self):
            return None

    model, before = Own(mlp()), mlp().state_dict()
    make_trainer(StaticFreezeCallback(1)).fit(model)
    assert not torch.equal(model.net[0].weight, before["0.weight"])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: IntervalFreezeCallback(0.3), ""),
        (SmartFreezeCallback, "needs a run of 100 steps, and this one has 1"),
        (lambda: SmartFreezeCallback(StartStage(probe_steps=5)), "probe_steps=5, and the run has only 1 batches"),
    ],
)
def test_fast_dev_run_has_nothing_to_save(make_trainer, make, told):
    callback = make()
    make_trainer(callback, fast_dev_run=True).fit(Classifier(mlp()))
    assert not callback.frozen and told in "\n".join(callback.timeline.notes)


def test_a_misspelt_argument_names_the_callback():
    with pytest.raises(TypeError, match="SmartFreezeCallback.* 'treshold'"):
        SmartFreezeCallback(treshold=0.8)


class NeverSteps(Classifier):
    def training_step(self, batch, batch_idx):
        raise AssertionError("a training step began")


@pytest.mark.parametrize(
    ("callbacks", "trains", "error", "says"),
    [
        ([ScriptedFreeze({}, exclude=["net.11"])], True, ValueError, r"exclude='net.11'.*close names.*net"),
        ([ScriptedFreeze({})], False, ValueError, "no trainable parameter"),
        ([ScriptedFreeze({}), StaticFreezeCallback()], True, MisconfigurationException, "in one Trainer"),
    ],
    ids=["unknown pattern", "nothing trains", "two callbacks"],
)
def test_before_the_first_step(make_trainer, callbacks, trains, error, says):
    with pytest.raises(error, match=says):
        make_trainer(*callbacks).fit(NeverSteps(mlp().requires_grad_(trains)))


def with_strategy(strategy):
    """A Trainer that got no further than its strategy: some are not installed here."""
    trainer = Trainer.__new__(Trainer)
    trainer._accelerator_connector = SimpleNamespace(strategy=strategy)
    return trainer


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_are_not_supported(kind):
    with pytest.raises(MisconfigurationException, match=f"{kind.__name__}.*ddp"):
        check_strategy(with_strategy(kind.__new__(kind)), "SmartFreezeCallback", works_sharded=True)


def test_methods_that_need_whole_parameters():
    trainer = with_strategy(ModelParallelStrategy())
    check_strategy(trainer, "SmartFreezeCallback", SmartFreezeCallback.works_sharded)
    with pytest.raises(MisconfigurationException, match="ModelParallelStrategy.*AutoFreezeCallback needs whole ones"):
        check_strategy(trainer, "AutoFreezeCallback", AutoFreezeCallback.works_sharded)


def test_a_trainer_of_the_other_package():
    pytorch_lightning = pytest.importorskip("pytorch_lightning")
    model = pytest.importorskip("pytorch_lightning.demos.boring_classes").BoringModel()
    trainer = pytorch_lightning.Trainer(accelerator="cpu", barebones=True, callbacks=[ScriptedFreeze({})])
    with pytest.raises(TypeError, match="LightningModule from lightning.pytorch instead of pytorch_lightning"):
        trainer.fit(model)


def test_callbacks_and_stages_in_yaml(tmp_path):
    """By their import path, as in a LightningCLI of one's own."""
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n  callbacks:\n    - class_path: smartfrz_lightning.SmartFreezeCallback\n"
        "      init_args:\n        exclude: layer\n        verify: false\n"
        "        start: {class_path: smartfrz_lightning.stages.StartStage, init_args: {threshold: 0.7}}\n"
        "    - class_path: smartfrz_lightning.StaticFreezeCallback\n"
        "      init_args: {exclude: [a, b], report: false}\n"
    )
    model = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
    cli = LightningCLI(run=False, args=[f"--config={config}", model, "--trainer.accelerator=cpu"])
    smart, static = (c for c in cli.trainer.callbacks if hasattr(c, "exclude"))
    assert (smart.exclude, static.exclude) == (("layer",), ("a", "b")) and static.report is False
    assert list(SmartFreezeCallback(start=False).stages) == ["later"]  # nothing is there to try
    assert list(smart.stages) == ["start", "later"] and smart.stages["start"].threshold == 0.7


def test_the_sizes_of_a_predictor_are_those_of_its_file(tmp_path):
    AttentionPredictor(sample_size=64).save(tmp_path / "small.safetensors", window=12)
    method = AttentionFreezeCallback(str(tmp_path / "small.safetensors"))
    assert (method.sample_size, method.window) == (64, 12)


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


def test_batches_that_are_too_small_for_cka(make_trainer, tmp_path):
    torch.save({"state_dict": Classifier(mlp()).state_dict()}, tmp_path / "end.ckpt")
    with pytest.raises(ValueError, match="the batch has 3 examples, and CKA needs at least 4"):
        make_trainer(SimilarityFreezeCallback(str(tmp_path / "end.ckpt"))).fit(Classifier(mlp(), batch_size=3))
