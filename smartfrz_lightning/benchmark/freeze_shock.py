"""What a BatchNorm does when it freezes: the loss of one batch before and after, and the finished model's accuracy.

    python -m smartfrz_lightning.benchmark.freeze_shock data/cifar10 tf_efficientnet_lite0 \
        data/weights/tf_efficientnet_lite0.safetensors --image_size 64

A network with pretrained weights is fine-tuned in a short loop; at a moment a front of it freezes, and its BatchNorms
go to eval mode at once, or after the statistics were measured anew over some batches. Needs the extra ``vision``.
"""

import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from smartfrz_lightning.benchmark.results import append_result, read_results
from smartfrz_lightning.benchmark.table import margin
from smartfrz_lightning.engine.stillness import Stillness
from smartfrz_lightning.experiments.networks import CifarResNet
from smartfrz_lightning.experiments.weights import load_weights
from smartfrz_lightning.extras import require
from smartfrz_lightning.freezing.freeze import freeze
from smartfrz_lightning.layers.tracer import find_layers

Images = tuple[Tensor, Tensor]


def read_images(folder: Path, size: int, classes: int, count: int, seed: int) -> Images:
    """Some images of the first classes in a folder with one folder a class, as values from 0 to 1.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from torchvision.io import write_png
        >>> from smartfrz_lightning.benchmark.freeze_shock import read_images
        >>> with TemporaryDirectory() as folder:
        ...     for name in "ab":
        ...         Path(folder, name).mkdir()
        ...         _ = write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), f"{folder}/{name}/0.png")
        ...     images, labels = read_images(Path(folder), size=16, classes=2, count=9, seed=0)
        >>> images.shape, sorted(labels.tolist())
        (torch.Size([2, 3, 16, 16]), [0, 1])
    """
    require("torchvision", "vision")
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Resize, ToTensor

    data = ImageFolder(str(folder), Compose([Resize(size), ToTensor()]))
    chosen = [number for number, (_, label) in enumerate(data.samples) if label < classes]
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    images = torch.stack([data[chosen[number]][0] for number in order])
    return images, torch.tensor([data.samples[chosen[number]][1] for number in order])


def build(network: str, weights: str, classes: int, momentum: float) -> nn.Module:
    """A pretrained network with a new head, and one momentum for all its BatchNorms.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import save_file
        >>> from smartfrz_lightning.benchmark.freeze_shock import build
        >>> from smartfrz_lightning.experiments.networks import CifarResNet
        >>> with TemporaryDirectory() as folder:
        ...     save_file(CifarResNet(20).state_dict(), f"{folder}/net.safetensors")
        ...     net = build("resnet20", f"{folder}/net.safetensors", classes=5, momentum=0.01)
        >>> net.linear.out_features, net.bn1.momentum
        (5, 0.01)
    """
    if network.startswith("resnet") and network.removeprefix("resnet").isdigit():
        net: Any = CifarResNet(int(network.removeprefix("resnet")), classes)
        load_weights(net, weights, fresh=["linear.*"])
    else:
        require("timm", "vision")
        import timm

        net = timm.create_model(network)
        load_weights(net, weights)
        net.reset_classifier(classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    return net


def train(
    net: nn.Module, data: Images, test: Images, steps: int, at: int, depth: float, settle: int, seed: int
) -> dict:
    """Fine-tune, freeze a front, and say what the loss of one batch did and how good the model became.

    Args:
        net: The network.
        data: Images and labels to train on.
        test: Those to test on.
        steps: Steps of the run, SGD with momentum and a cosine schedule, batches of 32 with random flips.
        at: Step at which a front freezes.
        depth: Share of the layers that it has.
        settle: Batches over which its statistics are measured anew; 0 for none.
        seed: Of batches and flips.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.benchmark.freeze_shock import train
        >>> from smartfrz_lightning.experiments.networks import vgg8
        >>> images = torch.rand(8, 3, 16, 16), torch.zeros(8, dtype=torch.long)
        >>> outcome = train(vgg8(width=2), images, images, steps=4, at=2, depth=0.5, settle=1, seed=0)
        >>> sorted(outcome)
        ['accuracy', 'after', 'before']
    """
    (images, labels), generator = data, torch.Generator().manual_seed(seed)

    def batches() -> Iterator[Images]:
        while True:
            index = torch.randint(len(images), (32,), generator=generator)
            flip = (torch.rand(32, generator=generator) < 0.5)[:, None, None, None]
            yield torch.where(flip, images[index].flip(3), images[index]), labels[index]

    optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    layers = find_layers(net, images[:2])
    front = layers[: int(depth * len(layers))]
    still, outcome = Stillness(net.train()), {}
    for step, (x, y) in zip(range(steps), batches(), strict=False):
        if step == at:
            outcome["before"] = _loss(net, x, y)
            freeze(net, front, [optimizer])
            outcome["after"] = _loss(net, x, y)
            still.watch(front)
            still.settle([name for layer in front for name in layer.stateful], settle)
        still.hold()
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        schedule.step()
        still.batch_done()
    still.end()
    net.eval()
    with torch.no_grad():
        right = [(net(x).argmax(1) == y).float() for x, y in zip(*(part.split(200) for part in test), strict=True)]
    return {**outcome, "accuracy": 100 * float(torch.cat(right).mean())}


@torch.no_grad()
def _loss(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Of one batch, in the modes in which the modules are, without a trace in their statistics."""
    before = [buffer.clone() for buffer in net.buffers()]
    loss = float(F.cross_entropy(net(x), y))
    for buffer, old in zip(net.buffers(), before, strict=True):
        buffer.copy_(old)
    return loss


def main(
    images: str,
    network: str,
    weights: str,
    image_size: int = 32,
    classes: int = 10,
    mean: float = 0.5,
    std: float = 0.5,
    steps: int = 200,
    momenta: tuple[float, ...] = (0.1, 0.01),
    shares: tuple[float, ...] = (0.06, 0.25),
    depths: tuple[float, ...] = (0.5, 0.75),
    seeds: tuple[int, ...] = (1, 2, 3),
    output: str = "runs/freeze_shock.jsonl",
) -> None:
    """Measure and print a table. Started again, it goes on where it was stopped.

    Args:
        images: Folder with ``train/<class>/*`` and ``test/<class>/*``.
        network: ``resnet20`` and the like, or a name of timm.
        weights: File of its weights.
        image_size: Images are resized to this.
        classes: The first so many classes; 3,000 images of them are trained on, 1,000 tested.
        mean: Of the pixels, taken off.
        std: Of the pixels, divided by.
        steps: Steps of a run.
        momenta: Of all BatchNorms.
        shares: When the front freezes, as shares of the run.
        depths: Shares of the layers that freeze.
        seeds: One run each.
        output: JSON lines, one a run.
    """
    path = Path(output)
    known = {tuple(result["key"]): result for result in read_results(path)}
    settled = max(1, int(0.02 * steps))  # what the engine does
    cases = list(itertools.product(momenta, shares, depths, seeds))
    train_set, test_set = (
        read_images(Path(images) / part, image_size, classes, count, seed=0)
        for part, count in (("train", 3000), ("test", 1000))
    )
    train_set, test_set = (((x - mean) / std, y) for x, y in (train_set, test_set))
    with Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as progress:
        for momentum, share, depth, seed in progress.track(cases):
            for settle in (0, settled):
                key = (network, momentum, share, depth, settle, seed)
                if key not in known:
                    torch.manual_seed(seed)
                    net = build(network, weights, classes, momentum)
                    outcome = train(net, train_set, test_set, steps, int(share * steps), depth, settle, seed)
                    known[key] = {"key": key, **outcome}
                    append_result(path, known[key])
    table = Table(title=f"{network}: BatchNorms that freeze, {len(seeds)} seeds")
    for head in ("momentum", "frozen at", "front", "loss before", "after", "accuracy", f"settled in {settled}", "gain"):
        table.add_column(head, justify="right")
    for momentum, share, depth in itertools.product(momenta, shares, depths):
        pairs = [[known[network, momentum, share, depth, s, seed] for s in (0, settled)] for seed in seeds]
        means = {k: statistics.fmean(at_once[k] for at_once, _ in pairs) for k in ("before", "after", "accuracy")}
        gains = [later["accuracy"] - at_once["accuracy"] for at_once, later in pairs]
        cells = [f"{means[name]:.2f}" for name in ("before", "after")] + [f"{means['accuracy']:.1f}"]
        cells += [f"{means['accuracy'] + statistics.fmean(gains):.1f}"]
        gain = f"{statistics.fmean(gains):+.1f} ± {margin(gains):.1f}"
        table.add_row(f"{momentum:g}", f"{share:.0%}", f"{depth:.0%}", *cells, gain)
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    auto_cli(main)
