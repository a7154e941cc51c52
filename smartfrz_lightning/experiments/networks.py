"""Small image classifiers for 32 x 32 pixels. Needs the extra ``vision``."""

import torch.nn.functional as F
from torch import Tensor, nn

from smartfrz_lightning.extras import require

require("torchvision", "vision")

from torchvision.models import MobileNetV2, VisionTransformer  # noqa: E402


class CifarResNet(nn.Module):
    """ResNet for CIFAR (He et al. 2016, section 4.2): three stages, parameter-free shortcuts (option A).

    Args:
        depth: ``6n + 2`` layers: 20, 32, 44, ...
        num_classes: Outputs.
        width: Channels of the first stage; the others have twice and four times as many.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth}: a CIFAR ResNet has 6n + 2 layers, such as 20 or 32")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks)
        self.layer2 = _stage(width, 2 * width, blocks)
        self.layer3 = _stage(2 * width, 4 * width, blocks)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[batch, num_classes]`` of images ``[batch, 3, height, width]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + shortcut)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = _Block(inputs, outputs, 1 if inputs == outputs else 2)
    return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def vgg8(num_classes: int = 10, in_channels: int = 3, width: int = 32) -> nn.Sequential:
    """A plain chain of seven convolutions with BatchNorm, and a linear head."""
    layers: list[nn.Module] = []
    inputs = in_channels
    for outputs, pool in ((1, False), (1, True), (2, False), (2, True), (4, False), (4, True), (8, True)):
        layers += [nn.Conv2d(inputs, outputs * width, 3, padding=1, bias=False), nn.BatchNorm2d(outputs * width)]
        layers += [nn.ReLU()] + [nn.MaxPool2d(2)] * pool
        inputs = outputs * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))


def mobilenet_v2_32(num_classes: int = 10, width_mult: float = 0.5) -> MobileNetV2:
    """torchvision's MobileNetV2 for 32 x 32 pixels: two strides less, without its last block and its dropout."""
    # expansion, channels, repeats, stride
    blocks = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 2, 2], [6, 64, 3, 2], [6, 96, 2, 1], [6, 160, 2, 1]]
    return MobileNetV2(num_classes=num_classes, width_mult=width_mult, inverted_residual_setting=blocks, dropout=0.0)


def vit_32(num_classes: int = 10, num_layers: int = 6, hidden_dim: int = 128) -> VisionTransformer:
    """torchvision's vision transformer on 64 patches of 4 x 4 pixels."""
    return VisionTransformer(
        image_size=32,
        patch_size=4,
        num_layers=num_layers,
        num_heads=4,
        hidden_dim=hidden_dim,
        mlp_dim=2 * hidden_dim,
        num_classes=num_classes,
    )
