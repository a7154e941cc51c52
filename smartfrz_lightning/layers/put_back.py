"""Put back what a tensor held."""

import torch
from torch import Tensor


@torch.no_grad()
def put_back(now: Tensor | None, before: Tensor) -> None:
    """Write into a tensor what it held before, unless it holds that, is gone, or has another shape by now.

    A buffer may have grown; one that is expanded, or made in inference mode, cannot be written to.
    """
    if now is None or now.shape != before.shape:
        return
    before = before.to(now)
    if now.layout is torch.strided and ((now == before) | ((now != now) & (before != before))).all():  # NaN is itself
        return
    now.copy_(before)
