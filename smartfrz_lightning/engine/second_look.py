"""SecondLook: a copy of a model trains everything beside it for a while, to see whether its held front costs it."""

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smartfrz_lightning.freezing.freeze import thaw
from smartfrz_lightning.layers.layer import Layer

Model = TypeVar("Model", bound=nn.Module)

FROM = 0.1
"""When it begins, as a share of a run of up to :data:`FORESEEN` steps; in longer ones as soon as a front is held."""

WARMING_UP = 250
"""Steps of a long run for which its look waits at most while the learning rates rise: before that nothing differs."""

SHARE, MOST, MOST_OF_LONG, LEAST = 0.1, 50, 100, 10
"""How long it takes, as a share of the run, the most steps, those of a run of more than :data:`FORESEEN`, and the least
that tell anything."""

TELLING = 0.01
"""Differences below this share of the loss tell nothing, however steady they are: hardly anything is learned yet."""

FIRM, SOME = 1.5, 0.5
"""Standard errors by which the loss with everything training is to be higher for all of a front to stay, or a part."""

CHECKED, LIKELY = 0.65, 0.8
"""Likelihoods of no harm at which a front is held: if it is looked at again, and if it is not."""

FORESEEN = 1000
"""Steps of the run up to which a look in its beginning says enough about its end to hold from :data:`CHECKED` on, and
to hold to the end."""

UNTIL, LATEST = 0.4, 1000
"""Share of a run of more than :data:`FORESEEN` steps for which a front is held, and the most steps: many a long run is
stopped early."""


def look_length(steps: float) -> int:
    """Steps of a second look in a run: a tenth of it, but at most 50; 100 in a run of more than 1,000 steps.

    Example:
        >>> from smartfrz_lightning.engine.second_look import look_length
        >>> look_length(200), look_length(1000), look_length(float("inf"))
        (20, 50, 100)
    """
    return int(min(MOST_OF_LONG if _is_long(steps) else MOST, SHARE * steps + 1e-6))


def look_begin(steps: float, warming_up: bool = False) -> float:
    """Steps of a run before its second look: a tenth, and in a run of more than 1,000 steps none but the probe.

    There the copy that takes over is full training itself, which has missed nothing but the probe. A short run cannot
    afford that: the copy would take its share of all of it before it tells as much.

    Args:
        steps: Of the run, as far as is known.
        warming_up: Whether the learning rates rise: then a long run waits for a tenth of it at most, or 250 steps.

    Example:
        >>> from smartfrz_lightning.engine.second_look import look_begin
        >>> look_begin(200), look_begin(100_000), look_begin(2000, warming_up=True)
        (20.0, 0, 200.0)
    """
    if not _is_long(steps):
        return FROM * steps
    return min(FROM * steps, WARMING_UP) if warming_up else 0


def held_until(steps: float) -> float:
    """Steps of a run after which a front that was held from its start trains as well: two fifths, at most 1,000.

    Holding gains in the beginning, and in a long run the rest has the time to gain as much. See ``outcomes.let_go``.

    Args:
        steps: Of the run, as far as is known.

    Example:
        >>> from smartfrz_lightning.engine.second_look import held_until
        >>> held_until(2000), held_until(1000), held_until(50_000)  # a short run holds it to its end
        (800, inf, 1000)
    """
    return int(min(LATEST, UNTIL * round(steps) + 1e-6)) if _is_long(steps) else math.inf


def worth_looking(steps: float, done: float, saves: float) -> bool:
    """Whether a front saves more until it trains again than a second look costs that begins now.

    Args:
        steps: Of the run, as far as is known.
        done: How many of them are over.
        saves: What holding the front saves of a step.

    Example:
        >>> from smartfrz_lightning.engine.second_look import worth_looking
        >>> worth_looking(200, done=20, saves=0.3), worth_looking(200, done=20, saves=0.1)
        (True, False)
        >>> worth_looking(1500, done=30, saves=0.3), worth_looking(1500, done=30, saves=0.1)
        (True, False)
    """
    looks = look_length(steps)
    if _is_long(steps):
        held = held_until(steps) - done
        return looks >= LEAST and held > looks and saves * held >= looks
    left = 1 - FROM - SHARE
    return looks >= LEAST and done <= left * steps and saves * left >= looks / steps


def _is_long(steps: float) -> bool:
    return steps >= FORESEEN + 0.5  # steps that are told by the progress are no whole number


class SecondLook(Generic[Model]):
    """The same model with its front released, in the same batches, at the same learning rates.

    The model itself goes on as if nobody looked. Both begin with the same weights and see the same batches, so that
    what differs in their losses is due to the front. What that says of the end of the run is recorded by
    ``smartfrz_lightning.outcomes.look_again``.

    Args:
        model: The model, between two steps, with a front that is held.
        optimizer: What steps it.
        front: The layers that are held.
        steps: How many steps to look.

    Attributes:
        model: The copy.
        optimizer: That of the copy.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from smartfrz_lightning.engine.second_look import SecondLook
        >>> from smartfrz_lightning.freezing.freeze import freeze
        >>> from smartfrz_lightning.layers import find_layers
        >>> net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.rand(8, 4)
        >>> optimizer, front = torch.optim.SGD(net.parameters(), 0.1), find_layers(net, x)[:1]
        >>> freeze(net, front)
        >>> look, losses = SecondLook(net, optimizer, front, steps=4), []
        >>> for step in range(4):
        ...     for model, stepper in ((net, optimizer), (look.model, look.optimizer)):
        ...         losses.append(model(x).square().mean())
        ...         stepper.zero_grad()
        ...         losses[-1].backward()
        ...         stepper.step()
        ...     look.note(losses[-2], losses[-1], stepped=True)
        >>> look.done, look.gain > 0, net[0].weight.requires_grad  # with everything training the loss falls faster
        (True, True, False)
    """

    def __init__(self, model: Model, optimizer: Optimizer, front: Sequence[Layer], steps: int) -> None:
        self.model: Model
        self.optimizer: Optimizer
        self.model, self.optimizer = copy.deepcopy((model, optimizer))  # at once: one holds weights of the other
        thaw(self.model, front)
        # What has not moved in the copy is not handed over: hooks that were not called for it may have moved it since.
        fixed = (p for p in self.model.named_parameters() if not p[1].requires_grad)
        self._still = {name: tensor.detach().clone() for name, tensor in (*fixed, *self.model.named_buffers())}
        self.steps, self.taken = steps, 0
        self._differences: list[tuple[int, float, float]] = []  # steps before, difference, loss of the model
        self._settings: list[dict[str, Any]] = []

    def follow(self, optimizer: Optimizer) -> bool:
        """The model's own optimizer is about to step: the copy's will do so at the same rates.

        Returns:
            Whether it still has the parameters that the copy's has.
        """
        self._settings = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        own, now = ([len(group["params"]) for group in one.param_groups] for one in (self.optimizer, optimizer))
        return own == now

    def take_rates(self) -> None:
        """The copy is about to step: at the rates of the model's own step."""
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)

    def note(self, held: Tensor | None, released: Tensor | None, stepped: bool) -> None:
        """Both have seen a batch.

        Args:
            held: Loss of the model; ``None`` if it skipped the batch.
            released: Loss of the copy.
            stepped: Whether they moved in it.
        """
        if held is not None and released is not None:
            own, copied = float(held.detach()), float(released.detach())
            difference = own - copied
            if math.isnan(difference):  # what breaks down is as bad as can be
                difference = -math.inf if math.isfinite(own) else math.inf if math.isfinite(copied) else math.nan
            self._differences.append((self.taken, difference, own))
        self.taken += stepped

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {n: t.detach() for n, t in (*self.model.named_parameters(), *self.model.named_buffers())}

    @property
    def done(self) -> bool:
        """Whether the steps are over."""
        return self.taken >= self.steps

    @property
    def _late(self) -> Tensor:
        """In the first half the copy's optimizer warms up to what was held."""
        late = [(difference, loss) for taken, difference, loss in self._differences if taken >= self.steps // 2]
        return torch.tensor(late or [(0.0, 0.0)], dtype=torch.float64).T

    @property
    def gain(self) -> float:
        """How much lower the loss of the copy was, on average over the batches of the second half of the steps."""
        return float(self._late[0].mean())

    @property
    def error(self) -> float:
        """The standard error of that, at least a hundredth of the loss; infinite if there was but one batch."""
        differences, losses = self._late
        if len(differences) < 2:
            return math.inf
        return max(float(differences.std() / len(differences) ** 0.5), TELLING * abs(float(losses.mean())))

    @torch.no_grad()
    def hand_over(self, model: nn.Module, optimizer: Optimizer) -> None:
        """The model goes on as its copy: weights, buffers, and the state of the optimizer.

        Args:
            model: The model, whose front trains again by now.
            optimizer: What steps it.
        """
        copied = dict([*self.model.named_parameters(), *self.model.named_buffers()])
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            own = copied.get(name)
            if own is None or own.shape != tensor.shape or (name in self._still and own.equal(self._still[name])):
                continue
            tensor.copy_(own)
        for group, own in zip(optimizer.param_groups, self.optimizer.param_groups, strict=True):
            for parameter, copied_parameter in zip(group["params"], own["params"], strict=True):
                optimizer.state.pop(parameter, None)
                if state := self.optimizer.state.get(copied_parameter):
                    optimizer.state[parameter] = state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "tensors": self._tensors,  # not the state dict, which users cut down
            "still": dict(self._still),
            "optimizer": self.optimizer.state_dict(),
            "taken": self.taken,
            "steps": self.steps,
            "differences": list(self._differences),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        for name, tensor in self._tensors.items():
            tensor.copy_(state["tensors"][name])
            if name in self._still:
                self._still[name].copy_(state["still"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.taken, self.steps = state["taken"], state["steps"]
        self._differences = list(state["differences"])


def how_much_stays(
    sure: Sequence[float], gain: float, error: float, likely: float = LIKELY, firm: float = FIRM, some: float = SOME
) -> int:
    """How many layers of a held front go on being held.

    All of them if the loss with everything training was clearly the higher one, as where it grew without bounds; those
    up to which holding was likely harmless from the start, if it was somewhat higher; otherwise none.

    Args:
        sure: How likely it does no harm to hold the first layer, the first two, and so on.
        gain: How much lower the loss was with everything training.
        error: The standard error of that.
        likely: From which likelihood on a front counts as harmless.
        firm: Standard errors that are clearly.
        some: Standard errors that are somewhat.

    Example:
        >>> from smartfrz_lightning.engine.second_look import how_much_stays
        >>> sure = [0.9, 0.85, 0.6]
        >>> [how_much_stays(sure, gain, error=0.01) for gain in (-0.02, -0.01, 0.0, 0.02)]
        [3, 2, 0, 0]
    """
    if math.isnan(gain):  # both broke down
        return likely_part(sure, likely)
    if math.isinf(gain):  # one did, and there is no error
        return len(sure) if gain < 0 else 0
    if gain + firm * error <= 0:
        return len(sure)
    return likely_part(sure, likely) if gain + some * error <= 0 else 0


def likely_part(sure: Sequence[float], likely: float = LIKELY) -> int:
    """How many layers of a front make the longest one that is likely harmless.

    Example:
        >>> from smartfrz_lightning.engine.second_look import likely_part
        >>> likely_part([0.9, 0.7, 0.85, 0.6]), likely_part([0.6])
        (3, 0)
    """
    return max((number for number, share in enumerate(sure, 1) if share >= likely), default=0)


def held_front(layers: Sequence[Layer], held: Collection[str], frozen: Collection[str]) -> list[Layer]:
    """The layers that were held from the start and still are.

    Example:
        >>> from smartfrz_lightning.engine.second_look import held_front
        >>> held_front([], held=["stem"], frozen=["stem"])
        []
    """
    return [layer for layer in layers if layer.name in held and layer.name in frozen]
