"""What a case trains: its network as it came, its layers, its images or sentences."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from research.outcomes.case import Case
from research.outcomes.networks import TEXT, build, image_size, normalisation
from research.outcomes.tasks import image_task
from research.outcomes.texts import text_task
from research.outcomes.training import Images
from smartfrz_lightning.layers.finder import find_layers
from smartfrz_lightning.layers.layer import Layer


@dataclass
class Setup:
    """A case, ready to train.

    Attributes:
        net: The network.
        layers: Its layers, the head last.
        data: What it trains on.
        validation: What it is judged by.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.layers import find_layers
        >>> from research.outcomes.networks import build
        >>> from research.outcomes.setup import Setup
        >>> net, data = build("vgg8", 2), (torch.rand(8, 3, 32, 32), torch.arange(8) % 2)
        >>> len(Setup(net, find_layers(net, data[0]), data, data).layers)
        8
    """

    net: nn.Module
    layers: list[Layer]
    data: Images
    validation: Images


def set_up(case: Case, data: str | Path, weights: str | Path, device: str = "cpu") -> Setup:
    """Read the data of a case and build its network.

    Args:
        case: The case.
        data: Folder of the images or sentences, see ``image_task``.
        weights: Folder of ``<case.weights>.safetensors``, or of the folder ``<case.weights>``.
        device: Where it trains.
    """
    text = case.network in TEXT
    if text:
        parts = text_task(case, data, weights)
    else:
        parts = image_task(case, data, *normalisation(case.network), image_size(case.network))
    train_set, validation = ((x.to(device), y.to(device)) for x, y in parts)
    torch.manual_seed(case.seed)
    file = Path(weights) / (case.weights if text else f"{case.weights}.safetensors") if case.weights else None
    net = build(case.network, len(case.classes), file).to(device, memory_format=torch.channels_last)  # a tenth faster
    layers = find_layers(net, train_set[0][: case.batch_size])
    assert layers[-1].always_trains == "output", f"{case.network}: the head is to be the last layer"
    return Setup(net, layers, train_set, validation)
