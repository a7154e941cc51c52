"""StepMeter: FLOPs and saved bytes of one training step."""

import contextlib
from collections.abc import Iterator

from torch import nn

from smartfrz_lightning.cost.flops import StepFlopCounter, StepFlops
from smartfrz_lightning.cost.memory import SavedActivations
from smartfrz_lightning.freezing.compiled import eager


class StepMeter:
    """Measure a training step from :meth:`start` to :meth:`stop`; compiled parts run eager meanwhile.

    Args:
        model: The model.

    Attributes:
        counter: Counts the FLOPs.
        running: Whether a step is being measured.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.cost.step_meter import StepMeter
        >>> net = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
        >>> meter = StepMeter(net)
        >>> meter.start()
        >>> net(torch.rand(4, 10)).sum().backward()
        >>> meter.stop()
        >>> meter.flops.total, meter.saved_bytes
        (5600, 480)
    """

    def __init__(self, model: nn.Module) -> None:
        self.counter = StepFlopCounter(model)
        self.running = False
        self._saved = SavedActivations(model)
        self._modes = contextlib.ExitStack()

    @property
    def flops(self) -> StepFlops:
        """FLOPs so far."""
        return self.counter.flops

    @property
    def saved_bytes(self) -> int:
        """The most that autograd kept at once for the backward pass."""
        return self._saved.bytes

    def start(self) -> None:
        """Begin, before the forward pass."""
        for mode in (eager(), self._saved, self.counter):
            self._modes.enter_context(mode)
        self.running = True

    @contextlib.contextmanager
    def interrupted_before_backward(self) -> Iterator[None]:
        """Count no more of what is saved: only checkpointed blocks that run again save now, one at a time.

        Another mode may end in between, as modes end in the reverse of the order in which they began.
        """
        self._modes.close()
        yield
        for mode in (eager(), self.counter):
            self._modes.enter_context(mode)

    def stop(self) -> None:
        """End; does nothing if no step is being measured."""
        self._modes.close()
        self.running = False
