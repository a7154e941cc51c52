"""Any image classifier of torchvision or timm, by name. Needs the extra ``vision``."""

import difflib
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from smartfrz_lightning.extras import require

require("torchvision", "vision")

from torchvision import models  # noqa: E402


def named_network(
    name: str, num_classes: int = 10, pretrained: str | None = None, arguments: dict[str, Any] | None = None
) -> nn.Module:
    """Build an image classifier by the name that torchvision or timm gives it; torchvision's comes first.

    Args:
        name: Such as ``"resnet50"`` or ``"deit_tiny_patch16_224"``; ``"timm/resnet50"`` takes timm's.
        num_classes: Outputs. Where pretrained weights have another number, the head starts afresh.
        pretrained: Name of the weights to download, in the library's own words (``"IMAGENET1K_V2"``, ``"fb_in1k"``),
            or ``"DEFAULT"``. Weights from a file are an argument of
            ``ImageClassifier``.
        arguments: Further arguments of the network's constructor, such as ``{"drop_path_rate": 0.1}``.

    Returns:
        The network: logits ``[batch, num_classes]`` of images ``[batch, 3, height, width]``.

    Raises:
        ValueError: Neither library has such a network, or it has no such weights.
        ConnectionError: The weights cannot be downloaded.
    """
    library, _, short = name.rpartition("/")
    if library not in ("", "torchvision", "timm"):
        raise ValueError(f"name={name!r}: before the slash stands torchvision or timm")
    arguments = arguments or {}
    if library != "timm" and short in models.list_models(module=models):
        return _torchvision(short, num_classes, pretrained, arguments)
    if library != "torchvision":
        require("timm", "vision")
        import timm

        short, _, tag = short.partition(".")
        if timm.is_model(short):
            if tag and pretrained not in (None, "DEFAULT", tag):
                raise ValueError(
                    f"name={name!r} and pretrained={pretrained!r} name different weights: give one of them"
                )
            return _timm(short, num_classes, tag if tag and pretrained else pretrained, arguments)
    raise ValueError(f"name={name!r}: no such network in torchvision or timm; close names: {_close(short)}")


def _torchvision(name: str, num_classes: int, pretrained: str | None, arguments: dict[str, Any]) -> nn.Module:
    if name in ("googlenet", "inception_v3") and arguments.get("aux_logits") is not False:
        raise ValueError(
            f"name={name!r} returns auxiliary logits while it trains: give arguments={{'aux_logits': False}}, or take "
            "timm/inception_v3"
        )
    network = models.get_model(name, num_classes=num_classes, **arguments)
    if pretrained is None:
        return network
    known = models.get_model_weights(name)
    if pretrained not in known.__members__:
        raise ValueError(f"pretrained={pretrained!r}: {name} has the weights {sorted(known.__members__)}")
    try:
        state = known[pretrained].get_state_dict(check_hash=True)
    except OSError as error:
        raise ConnectionError(_offline(name, pretrained, error)) from error
    own, head = network.state_dict(), _head(name, len(known[pretrained].meta["categories"]), arguments)
    state = {key: tensor for key, tensor in state.items() if key in own or not key.lower().startswith("aux")}
    wrong = [key for key in own.keys() | state.keys() if key not in head and _shape(own, key) != _shape(state, key)]
    if wrong:
        raise ValueError(
            f"pretrained={pretrained!r} does not fit {name} with arguments={arguments}: {len(wrong)} entries differ, "
            f"{sorted(wrong)[:3]}. Leave arguments out that change shapes, or give those that the weights were made "
            "with, such as image_size"
        )
    fresh = sorted(key for key in head if _shape(own, key) != _shape(state, key))
    network.load_state_dict({key: own[key] if key in fresh else state[key] for key in own})
    if fresh:
        rank_zero_warn(f"{name}: {', '.join(fresh)} start afresh, for {num_classes} classes")
    return network


def _head(name: str, categories: int, arguments: dict[str, Any]) -> set[str]:
    """Entries whose shape depends on the number of classes."""
    with torch.device("meta"):
        more, other = (models.get_model(name, num_classes=categories + n, **arguments).state_dict() for n in (1, 2))
    return {key for key in more if more[key].shape != other[key].shape}


def _shape(state: dict[str, Any], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None


def _timm(name: str, num_classes: int, pretrained: str | None, arguments: dict[str, Any]) -> nn.Module:
    import timm

    tagged = name if pretrained in (None, "DEFAULT") else f"{name}.{pretrained}"
    if pretrained not in (None, "DEFAULT") and tagged not in timm.list_pretrained(f"{name}.*"):
        tags = sorted(known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*"))
        raise ValueError(f"pretrained={pretrained!r}: {name} has the weights {tags}")
    try:
        return timm.create_model(tagged, pretrained=pretrained is not None, num_classes=num_classes, **arguments)
    except OSError as error:
        raise ConnectionError(_offline(name, str(pretrained), error)) from error


def _offline(name: str, pretrained: str, error: Exception) -> str:
    return (
        f"pretrained={pretrained!r} of {name} cannot be downloaded ({error}): leave pretrained out and give the "
        "classifier a file, weights=..."
    )


def _close(name: str) -> list[str]:
    import timm

    known = sorted({*models.list_models(module=models), *timm.list_models()})
    return difflib.get_close_matches(name, known, n=4, cutoff=0.4)
