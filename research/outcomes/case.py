"""Case: one fine-tuning, or one training from scratch, whose outcomes are recorded."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A network, a task, an optimizer and the length of a run.

    Attributes:
        network: Name of the network, see ``build``.
        weights: File name of its weights without suffix; empty for random ones.
        data: Folder of the images, or the name of a text task.
        classes: Which classes, by their number in the folder.
        images: Training images, or sentences.
        shift: What is done to all images, see ``tasks``.
        flips: Whether training images are flipped at random.
        optimizer: ``"sgd"``, ``"adamw"`` or ``"adam"``.
        rate: Peak learning rate.
        schedule: ``"cosine"``, ``"constant"``, ``"warmup"`` or ``"onecycle"``.
        steps: Length of the full run.
        batch_size: Images a step.
        seed: Of the head, the batches and the flips.
        later: Whether freezing at later moments is recorded too.
        head_rate: Learning rate of the head, relative to that of the other layers.

    Example:
        >>> from research.outcomes.case import Case
        >>> case = Case("vgg8", "", "cifar10", (0, 1), 100, "none", True, "sgd", 0.02, "cosine", 50, 16, 1)
        >>> case.name[:-7], case.name == Case(**{**case.asdict(), "seed": 2}).name  # a digest stands behind
        ('vgg8-scratch-cifar10-none-0050', False)
    """

    network: str
    weights: str
    data: str
    classes: tuple[int, ...]
    images: int
    shift: str
    flips: bool
    optimizer: str
    rate: float
    schedule: str
    steps: int
    batch_size: int
    seed: int
    later: bool = False
    head_rate: float = 1.0

    @property
    def name(self) -> str:
        """A name that no other case has."""
        digest = hashlib.sha256(json.dumps(self.asdict(), sort_keys=True).encode()).hexdigest()[:6]
        start = "pretrained" if self.weights else "scratch"
        return f"{self.network}-{start}-{self.data}-{self.shift}-{self.steps:04d}-{digest}"

    def asdict(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "classes": list(self.classes)}


def draw_cases(groups: Sequence[Mapping[str, Any]]) -> Iterator[Case]:
    """Cases drawn from groups: for every field of ``Case`` the values to draw from.

    A group has ``draw``, how many, and its own ``seed``; ``classes`` is ``{from: [first, last], count: [5, 10]}``.
    The cases of a group do not depend on other groups, and the first ones not on how many are drawn.

    Example:
        >>> from research.outcomes.case import draw_cases
        >>> group = {"network": "vgg8", "weights": "", "data": "cifar10", "images": [100, 200], "shift": "none",
        ...          "flips": [True, False], "optimizer": "sgd", "rate": [0.01, 0.1], "schedule": "cosine",
        ...          "steps": [50], "batch_size": 16, "classes": {"from": [0, 9], "count": [2, 5]}}
        >>> cases = list(draw_cases([{"draw": 3, "seed": 0, **group}]))
        >>> cases[:2] == list(draw_cases([{"draw": 2, "seed": 0, **group}])), len({case.name for case in cases})
        (True, 3)
    """
    for group in groups:
        fields = {key: value for key, value in group.items() if key not in ("draw", "seed", "held_out")}
        for number in range(group["draw"]):
            draw = random.Random(f"{group['seed']}/{number}")
            case = {key: _one(draw, value) for key, value in sorted(fields.items()) if key != "classes"}
            pool, count = fields["classes"]["from"], _one(draw, fields["classes"]["count"])
            case["classes"] = tuple(sorted(draw.sample(range(pool[0], pool[1] + 1), count)))
            yield Case(seed=draw.randrange(1, 10**6), **case)


def _one(draw: random.Random, value: Any) -> Any:
    return draw.choice(value) if isinstance(value, list | tuple) else value
