"""Rules that choose a front to hold: the start predictor, what it has to beat, and what nobody can know beforehand."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from research.outcomes.examples import Example
from research.outcomes.fitting import recorded
from smartfrz_lightning.predictor.start import StartPredictor
from smartfrz_lightning.stages.start import choose_prefix

Rule = Callable[[Example], int]
"""Number of layers that are held, one of the recorded depths or 0."""


def likely(predictor: StartPredictor, threshold: float, save: float | None = None) -> Rule:
    """What ``SmartFreezeCallback`` does, with the choice among the recorded fronts only.

    Args:
        predictor: The predictor.
        threshold: The least likelihood of no harm.
        save: The share to save, in place of the threshold.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.rules import likely
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> from smartfrz_lightning.predictor.start import StartPredictor
        >>> rule = likely(StartPredictor.load(), threshold=0.8)
        >>> all(rule(case) in {0, *case.held} for case in cases)
        True
    """
    return lambda example: choose(example, predictor(example.inputs).sigmoid(), threshold, save)


def choose(example: Example, likelihoods: Tensor, threshold: float, save: float | None = None) -> int:
    """The front that is held if its layers have these likelihoods ``[fronts]`` of no harm.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.rules import choose
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> import torch
        >>> likelihoods = torch.ones(len(cases[0].inputs))
        >>> choose(cases[0], likelihoods, threshold=0.8) == max(cases[0].held)
        True
    """
    depths = sorted(example.held)
    costs = [example.outcome.cost(example.held[depth]) for depth in depths]
    number = choose_prefix(costs, likelihoods[recorded(example)].tolist(), threshold, save)
    return depths[number - 1] if number else 0


def static(number: int) -> Rule:
    """Always the front with this number among the recorded ones.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.rules import static
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> static(0)(cases[0]) == min(cases[0].held)
        True
    """
    return lambda example: sorted(example.held)[number]


def slope(example: Example) -> int:
    """Three fifths of the layers if the front wants to move clearly less than the back.

    The relative norm of the mean gradient, estimated without bias from different batches; average over the first two
    thirds of the layers over that of the last third, below 0.8.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.rules import slope
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> all(slope(case) in {0, *case.held} for case in cases)
        True
    """
    relative = example.drift
    back = max(1, len(relative) // 3)
    gentle = relative[:-back].mean() < 0.8 * relative[-back:].mean()
    return static(2)(example) if gentle else 0


def fisher(example: Example, share: float = 0.1) -> int:
    """The deepest front that has at most this share of the Fisher information, by a probe's squared gradients.

    Args:
        example: The case.
        share: Of the sum over all layers before the head.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.rules import fisher
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> fisher(cases[0], share=0.0), fisher(cases[0], share=1.0) == max(cases[0].held)
        (0, True)
    """
    cumulative = example.fisher.cumsum(0)
    within = [depth for depth in sorted(example.held) if cumulative[depth - 1] <= share * cumulative[-1]]
    return within[-1] if within else 0


def oracle(example: Example, tolerance: float, by: str = "accuracy") -> int:
    """The cheapest front that turned out to be harmless; nobody can know.

    Args:
        example: The case.
        tolerance: Points of accuracy, or share of the validation loss, that it may be worse than full training.
        by: ``"accuracy"``, ``"loss"``, or ``"above"``: the points above shortened training at equal FLOPs.

    Example:
        >>> from research.outcomes.examples import load_examples
        >>> from research.outcomes.rules import oracle
        >>> cases = load_examples("research/results/held_out.jsonl")
        >>> oracle(cases[0], tolerance=100.0) == max(cases[0].held)
        True
    """
    full = example.outcome.full

    def good(depth: int) -> bool:
        run = example.held[depth]
        if by == "loss":
            return run.loss <= full.loss * (1 + tolerance)
        return (example.above(run) if by == "above" else example.gain(run)) >= -tolerance

    able = [depth for depth in sorted(example.held) if good(depth)]
    return able[-1] if able else 0


def baselines(learned: Mapping[str, StartPredictor], thresholds: Sequence[float]) -> dict[str, Rule]:
    """Every rule by name.

    Args:
        learned: Predictors by name.
        thresholds: Each of them at these.

    Example:
        >>> from research.outcomes.rules import baselines
        >>> list(baselines({}, thresholds=[]))[:3]
        ['nothing held', 'depth 1 of 5', 'depth 2 of 5']
    """
    rules: dict[str, Rule] = {"nothing held": lambda example: 0}
    rules |= {f"depth {number + 1} of 5": static(number) for number in range(4)}
    rules |= {"slope below 0.8": slope, "Fisher, 10 %": fisher}
    for name, predictor in learned.items():
        rules |= {f"{name}, {threshold:g}": likely(predictor, threshold) for threshold in thresholds}
    rules |= {
        "oracle: accuracy - 1": partial(oracle, tolerance=1.0),
        "oracle: loss + 2 %": _loss,
        "oracle: above": _above,
    }
    return rules


_loss, _above = partial(oracle, tolerance=0.02, by="loss"), partial(oracle, tolerance=0.0, by="above")
