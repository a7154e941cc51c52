"""The gradients of all layers in a probe: the first steps of a case, in which only the head moves."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research.outcomes.case import Case
from research.outcomes.training import Images, batch_at, learning_rate, make_optimizer
from smartfrz_lightning.history.sampling import WeightSampler
from smartfrz_lightning.history.statistics_shift import statistics_shift
from smartfrz_lightning.layers.layer import Layer


def probe_gradients(
    case: Case,
    net: nn.Module,
    layers: list[Layer],
    data: Images,
    steps: int,
    train_statistics: bool,
    sample_size: int = 1024,
) -> dict[str, Tensor]:
    """Run a probe on a network, which is not to be used afterwards.

    Args:
        case: The case.
        net: The network as it came.
        layers: Its layers; the last one is the head.
        data: Images and labels.
        steps: Length of the probe.
        train_statistics: Whether BatchNorms are in training mode.
        sample_size: Sampled weights a layer.

    Returns:
        ``gradients`` ``[steps, layers, sample_size]`` of the sampled weights, ``norms`` ``[steps, layers]`` of the
        gradients of all weights of a layer, ``loss`` ``[steps]``, and ``shift`` ``[steps]``, how far the statistics of
        the batches until then lie from those of the network.

    Example:
        >>> import torch
        >>> from smartfrz_lightning.layers import find_layers
        >>> from research.outcomes.case import Case
        >>> from research.outcomes.networks import build
        >>> from research.outcomes.probe import probe_gradients
        >>> case = Case("vgg8", "", "own", (0, 1), 8, "none", True, "sgd", 0.02, "cosine", 4, 4, 1)
        >>> net, data = build("vgg8", 2), (torch.rand(8, 3, 32, 32), torch.arange(8) % 2)
        >>> layers = find_layers(net, data[0][:2])
        >>> probe_gradients(case, net, layers, data, steps=3, train_statistics=True)["gradients"].shape
        torch.Size([3, 8, 1024])
    """
    net.train(train_statistics).requires_grad_(True)
    sampler = WeightSampler(net, layers, sample_size)
    optimizer = make_optimizer(case, [net.get_parameter(name) for name in layers[-1].parameters])
    gradients, norms, losses, shifts = [], [], [], []
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    running = [name for layer in layers for name in layer.stateful]
    out = torch.empty(len(layers), sampler.sample_size, device=data[0].device)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(case, step, case.steps) * case.head_rate
        x, y = batch_at(case, data, step)
        net.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        gradients.append(sampler.gradients(out).cpu().clone())
        norms.append([_gradient_norm(net, layer) for layer in layers])
        losses.append(float(loss.detach()))
        shifts.append(statistics_shift(net, running, before, dict(net.named_buffers())))
        optimizer.step()
    found = {"norms": norms, "loss": losses, "shift": shifts}
    return {"gradients": torch.stack(gradients), **{name: torch.tensor(values) for name, values in found.items()}}


def _gradient_norm(net: nn.Module, layer: Layer) -> float:
    grads = [net.get_parameter(name).grad for name in layer.weights]
    return float(sum(grad.detach().square().sum() for grad in grads if grad is not None)) ** 0.5
