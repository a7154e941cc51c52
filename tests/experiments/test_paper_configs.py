"""Every config of the paper's tables runs, shortened, on a little data of the same form and with random weights."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from small_bert import bert
from torchvision.io import write_jpeg

from smartfrz_lightning.benchmark.results import read_results
from smartfrz_lightning.benchmark.suite import benchmark_command, read_benchmark

ROOT = Path(__file__).parents[2]
PAPER = sorted((ROOT / "configs" / "paper").glob("table*.yaml"))
assert len(PAPER) == 13, "every row of the paper's tables"

SMALL = {
    "class_path": "torchvision.transforms.v2.Compose",
    "init_args": {
        "transforms": [
            {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [32, 32]}},
            {"class_path": "torchvision.transforms.ToTensor"},
        ]
    },
}


def cifar(folder):
    """The files that torchvision unpacks, with sixteen images each."""

    def write(path, label_key, **more):
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 255, (16, 3 * 32 * 32), dtype=np.uint8)
        path.write_bytes(pickle.dumps({"data": pixels, label_key: [n % 10 for n in range(16)], **more}))

    for number in range(1, 6):
        write(folder / "cifar-10-batches-py" / f"data_batch_{number}", "labels")
    write(folder / "cifar-10-batches-py" / "test_batch", "labels")
    write(folder / "cifar-10-batches-py" / "batches.meta", "labels", label_names=list("abcdefghij"))
    for part in ("train", "test"):
        write(folder / "cifar-100-python" / part, "fine_labels")
    write(folder / "cifar-100-python" / "meta", "labels", fine_label_names=[str(n) for n in range(100)])


def imagenet(folder):
    for part, count in (("train", 32), ("val", 4)):
        for name in ("n01440764", "n01443537"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count // 2):
                pixels = torch.randint(256, (3, 48, 40), dtype=torch.uint8)
                write_jpeg(pixels, str(folder / part / name / f"{number}.JPEG"))


def glue(folder):
    cola = "".join(f"gj04\t{n % 2}\t{'*' * (1 - n % 2)}\tThe bell rang.\n" for n in range(16))
    mrpc = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    mrpc += "".join(f'{n % 2}\t1\t2\tThe "bell rang.\tThe bell ringed.\n' for n in range(16))
    for name in ("in_domain_train.tsv", "in_domain_dev.tsv", "out_of_domain_dev.tsv"):
        (folder / name).write_text(cola)
    for name in ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"):
        (folder / name).write_text(mrpc, encoding="utf-8")


def shrunk(config, folder, monkeypatch):
    """Short runs, little data, small images; the convolutional networks are the real ones."""
    small = {"trainer.max_epochs": 1, "trainer.accelerator": "cpu", "trainer.check_val_every_n_epoch": 1}
    parts = " ".join(config["experiment"])
    small |= {"trainer.limit_train_batches": 4, "trainer.limit_val_batches": 1, "data.init_args.batch_size": 4}
    if "cifar" in parts:
        cifar(folder)
        monkeypatch.setattr(
            "torchvision.datasets.cifar.check_integrity", lambda *_: True
        )  # checksums of the real files
        small |= {"data.init_args.root": str(folder), "data.init_args.download": False, "data.init_args.resize": 32}
    if "imagenet" in parts:
        imagenet(folder)
        small["data.init_args.num_workers"] = 1
        for part in ("train", "val"):
            small[f"data.init_args.{part}_dataset.init_args"] = {"root": str(folder / part), "transform": SMALL}
    if "bert" in parts:
        glue(folder)
        files = {"cola": ("in_domain_train.tsv", ["in_domain_dev.tsv", "out_of_domain_dev.tsv"])}
        files |= {"mrpc": ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")}
        train, val = files["cola" if "cola" in parts else "mrpc"]
        val = [str(folder / name) for name in val] if isinstance(val, list) else str(folder / val)
        small |= {"data.init_args.train": str(folder / train), "data.init_args.validation": val}
        small |= dict.fromkeys(("data.init_args.tokenizer", "model.init_args.model"), bert(folder / "bert"))
    else:
        small["model.init_args.network.init_args.pretrained"] = False
    if "deit_tiny" in parts or "transformer" in parts:
        small |= {"model.init_args.network.dict_kwargs.img_size": 32, "model.init_args.network.dict_kwargs.depth": 2}
    return {**config.get("overrides", {}), **small}


def _shortly(path):
    """The same networks on a second data set are longer checks, and so is the largest one."""
    return pytest.param(
        path, marks=pytest.mark.slow if "cifar100" in path.stem or "vgg11" in path.stem else (), id=path.stem
    )


@pytest.mark.parametrize("path", map(_shortly, PAPER))
def test_paper_config(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(path.read_text())
    own = {"output": str(tmp_path / "out"), "seeds": [1], "overrides": shrunk(config, tmp_path, monkeypatch)}
    own["published"] = {name: config["published"][name] for name in ("full", "linear", "paper")}
    linear = {"callback": "LinearFreezeCallback", "overrides": {"model.init_args.schedule": "constant"}}
    methods = {"full": {}, "linear": {**linear, "arguments": {"t_0": 0.1}}}
    run = tmp_path / "benchmark.yaml"
    run.write_text(yaml.safe_dump({**config, **own, "methods": methods}))
    benchmark_command(["--config", str(run)])
    results = {result["run"]: result for result in read_results(tmp_path / "out" / "results.jsonl")}
    assert set(results) == {"full", "linear"} and results["full"]["steps"] == 4
    assert results["linear"]["timeline"]["events"]
    full = config["published"]["full"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "published, %" in table and f"{full['value']:.2f} ± {full['sd']:.2f}" in table
    assert table.splitlines()[-1].startswith("| paper | 0 | – |")  # not run here, published all the same


@pytest.mark.parametrize(
    ("table", "settings", "rate"),
    [
        ("table3_resnet50_imagenet", "from_scratch_eight_gpus", 0.1),
        ("table7_deit_tiny_imagenet", "transformer_from_scratch_eight_gpus", 0.00025),
    ],
)
def test_settings_for_eight_gpus(table, settings, rate, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = ROOT / "configs" / "paper" / f"{table}.yaml"
    config = yaml.safe_load(path.read_text())
    one_cpu = {"trainer.devices": 1, "trainer.strategy": "auto"}
    own = {"output": str(tmp_path / "out"), "seeds": [1], "methods": {"full": {}}}
    own["overrides"] = {**shrunk(config, tmp_path, monkeypatch), **one_cpu}
    run = tmp_path / "benchmark.yaml"
    run.write_text(yaml.safe_dump({**config, **own}))
    benchmark_command(["--config", str(run), f"--experiment+=configs/paper/settings/{settings}.yaml"])
    used = yaml.safe_load((tmp_path / "out" / "seed1" / "full" / "config.yaml").read_text())
    assert used["model"]["init_args"]["optimizer"]["init_args"]["lr"] == rate
    assert read_results(tmp_path / "out" / "results.jsonl")[0]["steps"] == 4


def test_imagenet_as_its_config_prepares_it(tmp_path):
    imagenet(tmp_path)
    config = yaml.safe_load((ROOT / "configs/paper/data/imagenet.yaml").read_text())
    for part in ("train", "val"):
        config["data"]["init_args"][f"{part}_dataset"]["init_args"]["root"] = str(tmp_path / part)
    config["data"]["init_args"]["num_workers"] = 0
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object(config)).data
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, 3, 224, 224) and images.min() < 0 and sorted(labels.tolist()) == 16 * [0] + 16 * [1]
    assert [len(labels) for _, labels in data.val_dataloader()] == [4]


@pytest.mark.parametrize("path", PAPER, ids=[path.stem for path in PAPER])
def test_paper_config_with_all_methods(path, monkeypatch):
    """As its first line says, without running it."""
    monkeypatch.chdir(ROOT)
    benchmark = read_benchmark(["--config=configs/benchmark/methods.yaml", f"--config={path}"])
    assert {"full", "linear", "auto", "paper"} <= set(benchmark.published) <= set(benchmark.methods)
    assert len(benchmark.schedule()) == 16 * 5


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "paper" / "networks").glob("*.yaml")), ids=lambda p: p.stem)
def test_pretrained_weights_have_their_names(path):
    network = yaml.safe_load(path.read_text())["model"]["init_args"]["network"]
    assert network["class_path"] == "timm.create_model" and network["init_args"]["pretrained"]
    assert network["init_args"]["model_name"] in timm.list_pretrained()
