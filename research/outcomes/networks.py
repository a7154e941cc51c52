"""The networks of the cases, by name. Needs the extra ``vision``."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smartfrz_lightning.experiments.byte_images import MEAN, STD
from smartfrz_lightning.experiments.networks import CifarResNet, mobilenet_v2_32, vgg8, vit_32
from smartfrz_lightning.experiments.weights import load_weights
from smartfrz_lightning.extras import require

_MAKE: dict[str, Any] = {
    "resnet20": lambda classes: CifarResNet(20, classes),
    "resnet32": lambda classes: CifarResNet(32, classes),
    "vgg8": vgg8,
    "mobilenet_v2": mobilenet_v2_32,
    "vit": vit_32,
}
TEXT = ("minilm",)
"""Networks that read token ids."""

_HEAD = {
    "resnet20": "linear.*",
    "resnet32": "linear.*",
    "vgg8": "27.*",
    "mobilenet_v2": "classifier.1.*",
    "vit": "heads.head.*",
}


class Tokens(nn.Module):
    """A sequence classifier of ``transformers`` as a plain network.

    Example:
        >>> import torch
        >>> from research.outcomes.networks import build
        >>> build("minilm", 5)(torch.tensor([[101, 7, 102, 0]])).shape
        torch.Size([1, 5])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[batch, classes]`` of token ids ``[batch, tokens]``, 0 where there is none."""
        return self.network(input_ids=ids, attention_mask=ids.ne(0)).logits


def build(network: str, num_classes: int, weights: str | Path | None = None) -> nn.Module:
    """A network with a new head.

    Args:
        network: ``resnet20``, ``resnet32``, ``vgg8``, ``mobilenet_v2``, ``vit``, ``minilm``, or a name of timm.
        num_classes: Outputs.
        weights: File of its weights, if it is pretrained; of ``minilm`` its folder.

    Example:
        >>> from research.outcomes.networks import build
        >>> build("vgg8", 5)[-1].out_features
        5
    """
    if network in _MAKE:
        net = _MAKE[network](num_classes)
        if weights:
            load_weights(net, str(weights), fresh=[_HEAD[network]])
        return net
    if network == "minilm":
        return Tokens(_minilm(num_classes, weights))
    require("timm", "vision")
    import timm

    net = timm.create_model(network)
    if weights:
        load_weights(net, str(weights))
    net.reset_classifier(num_classes)  # type: ignore[operator]
    return net


def _minilm(num_classes: int, weights: str | Path | None) -> nn.Module:
    require("transformers", "text")
    from transformers import BertConfig, BertForSequenceClassification

    if weights:
        return BertForSequenceClassification.from_pretrained(str(weights), num_labels=num_classes)
    size = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "num_hidden_layers": 6}
    return BertForSequenceClassification(BertConfig(num_labels=num_classes, **size))  # type: ignore[arg-type]


def image_size(network: str) -> int | None:
    """The size that a network's images are resized to, if not that of CIFAR.

    Example:
        >>> from research.outcomes.networks import image_size
        >>> image_size("vgg8"), image_size("tf_efficientnet_lite0")
        (None, 64)
    """
    return None if network in _MAKE else 64


def normalisation(network: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that a network wants its images normalised by.

    Example:
        >>> from research.outcomes.networks import normalisation
        >>> normalisation("tf_efficientnet_lite0")[0]
        tensor([0.5000, 0.5000, 0.5000])
    """
    if network in _MAKE:
        return torch.tensor(MEAN), torch.tensor(STD)
    return torch.full((3,), 0.5), torch.full((3,), 0.5)
