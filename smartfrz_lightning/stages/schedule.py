"""When a prefix that is frozen from the start is tried and unfrozen, by the length of the run.

What is best in runs of a few hundred steps differs from what is best in those of thousands. Every rule goes from one to
the other with the logarithm of the length, so that no length is a border.
"""

import math

SHORT, LONG = 400, 1500
"""Lengths of a run, in steps, up to which it counts as short and from which on as long."""

KEPT = 0.4
"""Share of a long run for which a prefix stays frozen; in a short one to the end."""

VERIFIED, UNVERIFIED = 0.65, 0.8
"""p(safe) at which a prefix is frozen in a short run if a trial follows, and if none does or the run is long."""

TRIAL_SHARE, TRIAL_STEPS, LONG_TRIAL_STEPS, LEAST_TRIAL = 0.1, 50, 100, 10
"""Length of the trial: a share of the run, its most steps in a short and in a long run, and the fewest that tell."""

TRIAL_BEGIN, WARM_UP = 0.1, 250
"""When it begins in a short run, as a share of it, and the most steps for which it waits while learning rates rise."""


def length_weight(steps: float) -> float:
    """0 for a short run, 1 for a long one, and in between by the logarithm of its steps."""
    return min(1.0, max(0.0, math.log(steps / SHORT) / math.log(LONG / SHORT))) if steps > 0 else 0.0


def start_threshold(steps: float) -> float:
    """p(safe) at which a prefix is frozen that a trial follows."""
    return VERIFIED + (UNVERIFIED - VERIFIED) * length_weight(steps)


def frozen_until(steps: float) -> float:
    """Steps after which a prefix that was frozen from the start trains again; ``inf`` in a short run."""
    weight = length_weight(steps)
    return math.inf if not weight else int((1 - (1 - KEPT) * weight) * round(steps) + 1e-6)


def trial_steps(steps: float) -> int:
    """Steps of the trial."""
    most = TRIAL_STEPS + (LONG_TRIAL_STEPS - TRIAL_STEPS) * length_weight(steps)
    return int(min(most, TRIAL_SHARE * steps) + 1e-6)


def trial_begin(steps: float, warming_up: bool = False) -> float:
    """Steps of the run before the trial: in a long one none, as what it releases has then missed nothing else."""
    if warming_up:
        return min(TRIAL_BEGIN * steps, WARM_UP)
    return (1 - length_weight(steps)) * TRIAL_BEGIN * steps


def worth_trying(steps: float, done: float, saves: float) -> bool:
    """Whether a frozen prefix saves more after a trial that begins now than the trial costs.

    Args:
        steps: Of the run.
        done: Steps that are done.
        saves: Share of a step that the prefix saves.
    """
    takes = trial_steps(steps)
    left = min(frozen_until(steps), steps) - done - takes
    return takes >= LEAST_TRIAL and saves * left >= takes
