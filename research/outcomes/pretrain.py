"""Pretrain the networks that some cases start from.

    python -m research.outcomes.pretrain research/configs/pretraining.yaml data data/weights

A network whose file is there is left alone. Needs the extra ``vision``.
"""

import sys
from pathlib import Path

import torch
import yaml
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from research.outcomes.case import draw_cases
from research.outcomes.networks import build, normalisation
from research.outcomes.tasks import image_task
from research.outcomes.training import evaluate, train


def main(cases: str, data: str, weights: str, groups: list[str] | None = None, threads: int = 1) -> None:
    """Pretrain.

    Args:
        cases: File of groups, each of one case; its name is that of the weights.
        data: Folder with a folder for each of the cases' ``data``.
        weights: Folder of the weights, where they also go.
        groups: Only these, by name.
        threads: Threads of PyTorch.
    """
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    for name, group in yaml.safe_load(Path(cases).read_text()).items():
        path = Path(weights) / f"{name}.safetensors"
        if path.exists() or (groups and name not in groups):
            continue
        [case] = draw_cases([group])
        train_set, test = image_task(case, data, *normalisation(case.network))
        torch.manual_seed(case.seed)
        net = build(case.network, len(case.classes)).to(memory_format=torch.channels_last)
        with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(name, total=case.steps)
            train(case, net, train_set, watch=lambda step, task=task: progress.update(task, completed=step))
        save_file({key: tensor.contiguous() for key, tensor in net.state_dict().items()}, path)
        console.print(f"{name}: {evaluate(net, test)['accuracy']:.1f} % of {len(case.classes)} classes")


if __name__ == "__main__":
    auto_cli(main)
