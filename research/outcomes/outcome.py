"""Outcome: what every way of freezing came to in one case, with what could be known beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from research.outcomes.case import Case
from smartfrz_lightning.cost.operands import Product
from smartfrz_lightning.cost.step_cost import StepCost
from smartfrz_lightning.history.tensor_file import read_tensors, write_tensors

FORMAT, VERSION = "smartfrz-outcome", 1


@dataclass
class Run:
    """One finished model of a case.

    Attributes:
        kind: ``"full"``, ``"shortened"`` (the schedule too) or ``"frozen"``.
        loss: On the validation images.
        accuracy: On them, in percent.
        steps: Length of the run.
        depth: How many layers from the first on were frozen.
        moment: The step from which on they were; 0 for a front that is held.

    Example:
        >>> from research.outcomes.outcome import Run
        >>> Run("frozen", loss=0.4, accuracy=82.0, steps=100, depth=3).moment
        0
    """

    kind: str
    loss: float
    accuracy: float
    steps: int
    depth: int = 0
    moment: int = 0


@dataclass
class Outcome:
    """A case: ``L`` layers in forward order, the last of them the head.

    Attributes:
        case: What was trained.
        layers: Names of the layers.
        sizes: Number of parameters of each.
        step: What a step costs.
        runs: The finished models.
        tensors: Of the full run, at ``N`` steps ``weights_step`` ``[N]``: sampled ``weights`` and their
            ``gradients`` ``[N, L, 64]``, ``weight_norms`` and ``gradient_norms`` ``[N, L]`` of all weights. Of a
            probe of ``P`` steps: ``probe_train_gradients`` ``[P, L, 64]``, ``_norms`` ``[P, L]``, ``_loss`` and
            ``_shift`` ``[P]``. ``losses`` ``[R, steps]``: the training losses of all runs, NaN where there are none.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from research.outcomes.case import Case
        >>> from research.outcomes.outcome import Outcome, Run, one_after_another
        >>> case = Case("vgg8", "", "own", (0, 1), 8, "none", True, "sgd", 0.02, "cosine", 100, 4, 1)
        >>> step = one_after_another([{"layer": "stem", "own": 10}, {"layer": "head", "own": 10}])
        >>> runs = [Run("full", 0.5, 80.0, 100), Run("frozen", 0.4, 82.0, 100, depth=1)]
        >>> outcome = Outcome(case, ["stem", "head"], [1, 1], step, runs, {})
        >>> with TemporaryDirectory() as folder:
        ...     outcome.save(f"{folder}/one.safetensors")
        ...     again = Outcome.load(f"{folder}/one.safetensors")
        >>> again.runs == runs, outcome.cost(runs[1])
        (True, 0.6)
    """

    case: Case
    layers: list[str]
    sizes: list[int]
    step: StepCost
    runs: list[Run]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def full(self) -> Run:
        """The run in which everything trains to the end."""
        return next(run for run in self.runs if run.kind == "full")

    def cost(self, run: Run) -> float:
        """FLOPs of a run relative to the full one.

        Args:
            run: One of this case.
        """
        frozen = self.layers[: run.depth]
        total, whole = self.step.when_frozen(frozen).total, self.step.full.total
        return (run.moment * whole + (run.steps - run.moment) * total) / (self.full.steps * whole)

    def save(self, path: str | Path) -> None:
        """Write the file in one piece: it is there whole or not at all."""
        write_tensors(path, self.tensors, {"format": FORMAT, "version": VERSION, **self.asdict()})

    @classmethod
    def load(cls, path: str | Path) -> "Outcome":
        """Read a file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is cut short, or no outcome of this version.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no outcome at {str(path)!r}: make one with python -m research.outcomes")
        tensors, about = read_tensors(path)
        if (about.pop("format", None), about.pop("version", None)) != (FORMAT, VERSION):
            raise ValueError(f"{str(path)!r} is not an outcome of version {VERSION}: record it again")
        return cls.fromdict(about, tensors)

    def asdict(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON can hold it."""
        about = {"case": self.case.asdict(), "layers": self.layers, "sizes": self.sizes, "costs": asdict(self.step)}
        return about | {"runs": [asdict(run) for run in self.runs]}

    @classmethod
    def fromdict(cls, about: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> "Outcome":
        """The outcome that ``asdict`` described."""
        case = Case(**{**about["case"], "classes": tuple(about["case"]["classes"])})
        costs, runs = about["costs"], [Run(**run) for run in about["runs"]]
        step = one_after_another(costs) if isinstance(costs, list) else StepCost.from_state_dict(costs)
        return cls(case, about["layers"], about["sizes"], step, runs, tensors or {})


def one_after_another(costs: Sequence[Mapping[str, Any]]) -> StepCost:
    """What a step costs, from the FLOPs of each layer, as recorded by earlier commits: every layer feeds the next one.

    Args:
        costs: Of each ``layer`` its ``own`` products with weights, those of them behind others of its own, ``inner``,
            and the products behind it without weights, ``following``, and with weights that never train, ``passing``.
    """
    products: list[Product] = []
    for number, cost in enumerate(costs):
        layer, before = 1 << number, (1 << number) - 1
        behind, inner = (before | layer, False), cost.get("inner", 0)
        products += [(cost["own"] - inner, [(before, False), (layer, True)]), (inner, [behind, (layer, True)])]
        products += [(cost.get("following", 0), [behind, behind]), (cost.get("passing", 0), [behind])]
    return StepCost([cost["layer"] for cost in costs], [product for product in products if product[0]])
