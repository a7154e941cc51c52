"""Schedule: when a prefix that is frozen from the start is tried and asked about, by the length of the run."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """What is best in runs of a few hundred steps differs from what is best in those of thousands.

    ``StartStage`` takes its thresholds from here, ``VerifyStage`` what concerns the trial, ``LaterStage`` for how long
    a prefix stays frozen at least; give all three the same.

    Every rule goes from one to the other with the logarithm of the length, so that no length is a border. Lengths count
    optimizer steps; a run of unknown length counts as one of ``long`` steps.

    Args:
        short: Steps up to which a run counts as short.
        long: Steps from which on it counts as long.
        kept: Share of a long run for which a prefix stays frozen at least; in a short one it does to the end.
        verified: p(safe) at which a prefix is frozen in a short run, if a trial follows.
        unverified: The same if none does, or the run is long.
        trial_share: Length of the trial, as a share of the run.
        trial_steps: Its most steps, in a short and in a long run.
        least_trial: The fewest steps that tell anything.
        trial_begin: When it begins in a short run, as a share of the run; in a long one at once.
        warm_up: The most steps for which it waits while learning rates rise.

    Raises:
        ValueError: A share or a p(safe) does not lie between 0 and 1, or ``long`` is not above ``short``.
    """

    short: float = 400
    long: float = 1500
    kept: float = 0.4
    verified: float = 0.65
    unverified: float = 0.8
    trial_share: float = 0.1
    trial_steps: tuple[int, int] = (50, 100)
    least_trial: int = 10
    trial_begin: float = 0.1
    warm_up: int = 250

    def __post_init__(self) -> None:
        for name in ("kept", "verified", "unverified", "trial_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie between 0 and 1")
        if not 0 < self.short < self.long:
            raise ValueError(f"short={self.short} and long={self.long}: must be above 0, and long the larger")

    def weight(self, steps: float) -> float:
        """0 for a short run, 1 for a long one."""
        if steps <= self.short or steps >= self.long:
            return float(steps >= self.long)
        return math.log(steps / self.short) / math.log(self.long / self.short)

    def threshold(self, steps: float) -> float:
        """p(safe) at which a prefix is frozen that a trial follows."""
        return self.verified + (self.unverified - self.verified) * self.weight(steps)

    def frozen_until(self, steps: float) -> float:
        """Steps for which a prefix that was frozen from the start stays so at least; ``inf`` in a short run."""
        weight = self.weight(steps)
        return math.inf if not weight else int((1 - (1 - self.kept) * weight) * round(steps) + 1e-6)

    def trial_length(self, steps: float) -> int:
        """Steps of the trial."""
        most = self.trial_steps[0] + (self.trial_steps[1] - self.trial_steps[0]) * self.weight(steps)
        return int(min(most, self.trial_share * steps) + 1e-6)

    def begin(self, steps: float, warming_up: bool = False) -> float:
        """Steps of the run before the trial. In a long run none: what the trial releases has then missed nothing."""
        if warming_up:
            return min(self.trial_begin * steps, self.warm_up)
        return (1 - self.weight(steps)) * self.trial_begin * steps

    def worth_trying(self, steps: float, done: float, saves: float) -> bool:
        """Whether a prefix saves more than a trial costs that begins now, in the time for which it stays at least."""
        takes = self.trial_length(steps)
        left = min(self.frozen_until(steps), steps) - done
        return takes >= self.least_trial and saves * left >= takes

    def known(self, steps: float) -> float:
        """The length by which a run goes whose own is ``inf`` where it is not known."""
        return self.long if steps == math.inf else steps
