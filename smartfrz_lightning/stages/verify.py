"""VerifyStage: try full training on shadow weights for a while, to see whether a frozen prefix costs anything."""

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from smartfrz_lightning.engine.rule import Decision
from smartfrz_lightning.engine.run import TrainingRun
from smartfrz_lightning.engine.shadow import ShadowStep, ShadowWeights
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.stages.schedule import Schedule
from smartfrz_lightning.stages.stage import Stage

_TELLING = 0.01  # differences below this share of the loss tell nothing, however steady they are


class VerifyStage(Stage):
    """Try whether a prefix that is frozen from the start holds the network back (this project).

    For a tenth of the run (50 steps at most, 100 in a long run) shadow weights, in which the prefix trains too, take
    the same steps in the same batches. If their loss is higher, the prefix stays frozen; otherwise the model adopts the
    shadow weights, and everything trains. Where there can be no trial, the part that is safe without one stays frozen.

    Args:
        likely: p(safe) of the part that stays where there can be no trial.
        bound: Standard errors by which the shadow's loss has to be higher for the prefix to stay.
        schedule: When the trial begins, and how long it takes.
    """

    def __init__(self, likely: float = 0.8, bound: float = 0.5, schedule: Schedule | None = None) -> None:
        self.likely, self.bound = likely, bound
        self.schedule = schedule or Schedule()

    def reset(self) -> None:
        self._trial: _Trial | None = None
        self._over = False
        self._stays: int | None = None  # layers of the prefix that stay, once that is decided
        self._adopts = False
        self._settings: list[dict[str, Any]] = []
        self._stepped = True

    def busy(self, run: TrainingRun) -> bool:
        return not self._over and bool(run.untrained)

    def start(self, run: TrainingRun) -> None:
        if not run.steps:
            self._over = False
        if run.cannot_verify and not run.steps:
            run.say(
                f"A frozen prefix cannot be tried: {run.cannot_verify}. Layers freeze only as far as p(safe) is at "
                f"least {self.likely:g}."
            )

    def before_batch(self, run: TrainingRun) -> None:
        if self._trial is None and not self._over and self._stepped and run.untrained and run.steps:
            self._begin(run)
        self._stepped = False

    def gradients_ready(self, run: TrainingRun, optimizer: Optimizer) -> None:
        if self._trial is not None:
            self._settings = [  # copies: a step may count in a tensor
                {name: value if name == "params" else copy.deepcopy(value) for name, value in group.items()}
                for group in optimizer.param_groups
            ]

    def batch_done(self, run: TrainingRun, stepped: bool) -> None:
        self._stepped = stepped
        trial = self._trial
        if trial is None:
            return
        if not _prefix(run):  # somebody unfroze it
            self._end_trial()
        elif trial.step(self._settings, stepped) and trial.done:
            self._decide(run, trial)
        elif trial.failed:
            self._cannot(run, f"its training step fails ({trial.failed})")

    def check_due(self, run: TrainingRun) -> bool:
        return self._stays is not None

    def select(self, run: TrainingRun) -> Decision:
        return Decision(thaw=[layer.name for layer in _prefix(run)[self._stays :]])

    def decision_applied(self, run: TrainingRun) -> None:
        self._stays = None
        self._end_trial()

    def changed(self, run: TrainingRun, frozen: Collection[str], thawed: Collection[str]) -> None:
        if self._adopts and self._trial is not None and thawed:
            self._trial.shadow.adopt(run.optimizers[0])
            self._adopts = False

    def end(self, run: TrainingRun) -> None:
        if self._trial is not None:
            self._trial.step_taker.disarm()
            self._trial = None
            run.say(f"The trial was cut short after {run.steps} steps: the frozen prefix was not compared.")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trial": None}

    def method_state(self) -> dict[str, Any]:
        return {"over": self._over}

    def load_method_state(self, state: dict[str, Any], run: TrainingRun) -> None:
        self._over = state["over"]

    # --- the trial

    def _begin(self, run: TrainingRun) -> None:
        prefix = _prefix(run)
        whole = self.schedule.known(run.total_steps)
        if run.steps < self.schedule.begin(whole, run.rates_rise):
            return
        if not prefix or run.cost is None:
            self._over = True
            return
        saves = 1 - run.agree(run.cost.relative([layer.name for layer in prefix]))
        if run.cannot_verify or run.shadow_step is None:
            self._keep_likely(run, f"it cannot be tried ({run.cannot_verify})")
        elif not self.schedule.worth_trying(whole, run.steps, saves):
            self._keep_likely(run, f"a trial in this run would be too short, or cost more than it saves ({saves:.0%})")
        else:
            self._open(run, run.shadow_step, prefix, self.schedule.trial_length(whole))

    def _open(self, run: TrainingRun, taker: ShadowStep, prefix: list[Layer], steps: int) -> None:
        optimizer, why = run.optimizers[0], ""
        try:
            size = sum(tensor.nbytes for tensor in (*run.model.parameters(), *run.model.buffers()))
            fits = taker.has_room(4 * size)
            shadow = ShadowWeights(run.model, optimizer, prefix) if fits else None
            why = "" if fits else "it does not fit into the memory of the device"
        except Exception as error:  # whatever a model or an optimizer holds
            shadow, why = None, f"its weights cannot be copied ({type(error).__name__}: {error})"
        if taker.all_well(shadow is not None) and shadow is not None:
            taker.arm(2 * shadow.size)
            self._trial = _Trial(taker, shadow, steps, run.steps)
        else:
            self._cannot(run, why or "it cannot be tried on another process")

    def _cannot(self, run: TrainingRun, why: str) -> None:
        self._end_trial()
        self._keep_likely(run, why)

    def _keep_likely(self, run: TrainingRun, why: str) -> None:
        prefix = _prefix(run)
        self._over = True
        self._stays = likely_part([run.confidence.get(layer.name, 1.0) for layer in prefix], self.likely)
        if self._stays < len(prefix):
            run.say(
                f"{len(prefix) - self._stays} of {len(prefix)} frozen layers train again: {why}, and their p(safe) is "
                f"below {self.likely:g}."
            )
        else:
            run.say(
                f"The {len(prefix)} frozen layers stay without a trial: {why}; p(safe) is at least {self.likely:g}."
            )

    def _decide(self, run: TrainingRun, trial: "_Trial") -> None:
        gain, error = run.agree(run.mean(torch.tensor(trial.gain())).tolist())
        stays = prefix_stays(gain, error, self.bound)
        self._over, self._stays, self._adopts = True, len(_prefix(run)) if stays else 0, not stays
        run.say(
            f"Trial, steps {trial.begun} to {run.steps}: with everything training the loss was {abs(gain):.2g} ± "
            f"{error:.2g} {'lower' if gain > 0 else 'higher'}; "
            f"{'the prefix stays frozen' if stays else 'everything trains'} "
            f"(a prefix is kept from {self.bound:g} standard errors higher on)."
        )

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.step_taker.disarm()
        self._trial, self._over, self._adopts = None, True, False


class _Trial:
    """A trial under way: how the two losses differ."""

    def __init__(self, step_taker: ShadowStep, shadow: ShadowWeights, steps: int, begun: int) -> None:
        self.step_taker, self.shadow, self._steps, self.begun = step_taker, shadow, steps, begun
        self.failed = ""
        self._taken = 0
        self._differences: list[tuple[int, float, float]] = []  # steps before, difference, loss of the model

    @property
    def done(self) -> bool:
        """Whether its steps are over."""
        return self._taken >= self._steps

    def step(self, settings: list[dict[str, Any]], stepped: bool) -> bool:
        """Repeat a batch on the shadow weights; returns whether it went well on every process."""
        taker, loss = self.step_taker, None
        if not stepped and not taker.called:  # a batch that the loop skipped
            return True
        own = taker.loss
        try:
            if stepped and not self.shadow.follow(settings):
                raise RuntimeError("other parameters train by now, or the optimizer stepped after the batch")
            loss = taker.take(self.shadow, stepped, lambda: self._taken + stepped >= self._steps)
        except Exception as error:  # whatever the user's code raises
            self.failed = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if not taker.all_well(not self.failed):
            self.failed = self.failed or "on another process"
            return False
        self._note(own, loss)
        self._taken += stepped
        return True

    def _note(self, frozen: Tensor | None, full: Tensor | None) -> None:
        if frozen is None or full is None:
            return
        own, other = float(frozen.detach()), float(full.detach())
        difference = own - other
        if math.isnan(difference):  # what breaks down is as bad as can be
            difference = -math.inf if math.isfinite(own) else math.inf if math.isfinite(other) else math.nan
        self._differences.append((self._taken, difference, own))

    def gain(self) -> tuple[float, float]:
        """How much lower the shadow's loss was, on average over the second half of the steps, and the standard error.

        In the first half its optimizer warms up to what was frozen. The error is at least a hundredth of the loss, and
        infinite if there was but one batch.
        """
        late = [(difference, loss) for taken, difference, loss in self._differences if taken >= self._steps // 2]
        differences, losses = torch.tensor(late or [(0.0, 0.0)], dtype=torch.float64).T
        if len(differences) < 2:
            return float(differences.mean()), math.inf
        error = max(float(differences.std() / len(differences) ** 0.5), _TELLING * abs(float(losses.mean())))
        return float(differences.mean()), error


def prefix_stays(gain: float, error: float, bound: float) -> bool:
    """Whether a prefix stays frozen after a trial, as it does where the losses of both broke down.

    The gain, how much lower the loss was with everything training, is infinite if only one of them did, its error NaN.
    """
    return gain != math.inf and not gain + bound * error > 0


def likely_part(safe: Sequence[float], likely: float = 0.8) -> int:
    """How many layers the longest prefix has whose p(safe) is high enough."""
    return max((number for number, share in enumerate(safe, 1) if share >= likely), default=0)


def _prefix(run: TrainingRun) -> list[Layer]:
    return [layer for layer in run.frozen_layers if layer.name in run.untrained]
