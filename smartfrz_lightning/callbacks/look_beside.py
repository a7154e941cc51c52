"""LookBeside: the second look at a held front, in a Trainer."""

import copy
import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.optim import Optimizer

from smartfrz_lightning.callbacks.copied_step import (
    average_gradients,
    end_batch,
    forward_and_backward,
    has_room,
    loss_of,
    prepare,
    step,
    why_not,
)
from smartfrz_lightning.cost.layer_flops import front_costs
from smartfrz_lightning.engine.freezer import Freezer
from smartfrz_lightning.engine.probed_start import LONGEST
from smartfrz_lightning.engine.second_look import (
    LIKELY,
    SecondLook,
    held_front,
    how_much_stays,
    likely_part,
    look_begin,
    look_length,
    worth_looking,
)
from smartfrz_lightning.layers.layer import Layer
from smartfrz_lightning.private.trainer import drawing_again, one_step_earlier, random_states
from smartfrz_lightning.report.timeline import Look

_Second = SecondLook[LightningModule]


class LookBeside:
    """After a tenth of the run train a copy of the module with its front released, beside it, for a tenth of the run.

    (When exactly, and for how long, :func:`~smartfrz_lightning.engine.second_look.look_begin` and ``look_length`` say:
    in a long run, from the moment on at which the front is held.)

    If the copy's loss is clearly the higher one in the second half of that, the copy is dropped, and the run is, to the
    last bit, one in which nobody looked. If it is only somewhat higher, the part of the front that was likely harmless
    from the start stays. Otherwise the module goes on as the copy, and everything trains. Where nobody looks (no copy
    can be trained, as with manual optimization, sharded parameters or compiled code; too few steps; a front that saves
    less than the look costs), the likely part stays, unless an earlier fit has looked.

    Args:
        trainer: Trains the module.
        engine: Holds its front.
        likely: The likelihood of no harm that a part of the front needs which nobody has looked at.
        wanted: Whether to look at all; if not, the likely part stays.
        state: Of :meth:`state_dict`, in a run that goes on.

    Attributes:
        over: Whether nothing is looked at any more.

    Example:
        >>> from lightning import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning import StaticFreezeCallback
        >>> from smartfrz_lightning.callbacks.look_beside import LookBeside
        >>> from smartfrz_lightning.engine import Freezer
        >>> model, trainer = BoringModel(), Trainer(accelerator="cpu", barebones=True)
        >>> [optimizer], _ = model.configure_optimizers()
        >>> LookBeside(trainer, Freezer(model, optimizer, StaticFreezeCallback())).over
        False
    """

    def __init__(
        self,
        trainer: Trainer,
        engine: Freezer,
        likely: float = LIKELY,
        wanted: bool = True,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._trainer, self._engine, self._likely, self._wanted = trainer, engine, likely, wanted
        self._unchecked = bool(state and state.get("unchecked"))
        self.over = bool(state and state["over"])
        self._state: dict[str, Any] | None = state["look"] if state else None
        self._look: _Second | None = None
        self._drawn: Any = None
        self._batch: Any = None
        self._scaler: Any = None
        self._stepped = True
        self._rates: list[float] = state.get("rates", []) if state else []

    @property
    def _whole(self) -> float:
        total = self._engine.run.total_steps
        return LONGEST if total == math.inf else total

    @property
    def _sure(self) -> list[float]:
        start = self._engine.timeline.start
        return [start.sure[layer.name] for layer in self._front] if start else []

    @property
    def _front(self) -> list[Layer]:
        timeline = self._engine.timeline
        return held_front(timeline.layers, timeline.start.held if timeline.start else (), timeline.frozen)

    @property
    def _saves(self) -> float:
        """Share of a step's FLOPs; no step with the front held may have been measured yet."""
        timeline, names = self._engine.timeline, [layer.name for layer in self._front]
        return 1 - front_costs(timeline.costs, timeline.states[0].flops, names)[-1] if names else 0.0

    @property
    def _warming_up(self) -> bool:
        """Whether the learning rates rise from the latest step to the next one."""
        rates = _rates(self._engine.run.optimizers[0])
        return any(now > before for before, now in zip(self._rates, rates, strict=False))

    def before_batch(self, module: LightningModule, batch: Any) -> None:
        """The module is about to see a batch; nothing in it is prepared for that yet."""
        if not self._wanted and not self.over:
            self._state, self.over, self._unchecked = None, True, True
        if self._state is not None:  # resumed
            state, self._state = self._state, None
            self._copy(module, state["steps"])
            if self._look is not None:
                self._look.load_state_dict(state)
        if not self.over and self._look is None and self._stepped:  # not while gradients accumulate
            self._begin(module)
        self._stepped = False
        if self._look is not None:
            self._drawn = random_states(module.device)
            self._batch = apply_to_collection(batch, Tensor, torch.clone)  # as training_step may change it

    def gradients_ready(self, optimizer: Optimizer) -> None:
        """The module's optimizer is about to step."""
        self._stepped = True
        if not self.over:  # on a GPU rates may be tensors, which are waited for
            self._rates = _rates(optimizer)
        if self._look is not None and not self._look.follow(optimizer):
            self._give_up("its optimizer got other parameters meanwhile")

    def after_batch(self, module: LightningModule, outputs: Any, batch_idx: int) -> None:
        """The module has seen a batch, and what watched it is gone."""
        if self._look is not None and not self._front:  # somebody thawed it
            self._look, self.over = None, True
        if self._look is not None and self._train(self._look, module, outputs, batch_idx) and self._look.done:
            self._decide(self._look, module)
        if self._unchecked and self._stepped:  # not while gradients accumulate
            self._unchecked = False
            if self._engine.timeline.look is None and (back := self._keep(likely_part(self._sure, self._likely))):
                rank_zero_warn(
                    f"{back} layers that were held train again: the probe says less than {self._likely:g} of holding "
                    "them as well, and nobody has looked whether it does harm"
                )

    def _begin(self, module: LightningModule) -> None:
        run, whole = self._engine.run, self._whole
        start = self._engine.timeline.start
        if start is None or not run.steps or run.steps < look_begin(whole, self._warming_up):
            return  # how long a run is, is known from its first step on
        if start.held and not self._engine.timeline.events:
            return
        saves = self._engine.processes.agree(self._saves)  # by the first batch of each process
        if not self._front or not worth_looking(whole, run.steps, saves):
            # There is nothing to see, or no time for it, or it would cost more than the front saves.
            self.over = self._unchecked = True
        elif why := why_not(self._trainer, module):
            self._give_up(why)
        elif not self._room(module):
            self._give_up("it does not fit into the memory of the device")
        else:
            self._copy(module, look_length(whole))

    def _room(self, module: LightningModule) -> bool:
        engine = self._engine
        room = has_room(module, engine.run.optimizers[0], engine.timeline.states[0].device_bytes)
        return self._trainer.strategy.reduce_boolean_decision(room, all=True)

    def _copy(self, module: LightningModule, steps: int) -> None:
        why = ""
        try:
            look = SecondLook(module, self._engine.run.optimizers[0], self._front, steps)
            prepare(self._trainer, look.model, look.optimizer)
            self._scaler = copy.deepcopy(getattr(self._trainer.precision_plugin, "scaler", None))
        except Exception as error:  # whatever a user's module holds
            why = _said(error)
        if self._all_well(why):
            self._look = look
        else:
            self._give_up(f"it cannot be copied ({why or 'on another process'})")

    def _all_well(self, why: str) -> bool:
        """Whether it went well on every process; each calls it."""
        return self._trainer.strategy.reduce_boolean_decision(not why, all=True)

    def _give_up(self, why: str) -> None:
        self._look, self.over, self._unchecked = None, True, True
        rank_zero_warn(
            f"no second look at the front that is held, as a copy of the model cannot be trained beside it: {why}. As "
            f"much of it stays held as does no harm with a likelihood of {self._likely:g}, by the probe"
        )

    def _keep(self, layers: int) -> int:
        """So many layers of the front stay; how many train again."""
        names = self._engine.processes.agree([layer.name for layer in self._front[layers:]])
        if names:
            self._engine.change(thaw_now=names)
        return len(names)

    def _train(self, look: _Second, module: LightningModule, outputs: Any, batch_idx: int) -> bool:
        """The copy sees the batch; whether it could. Nothing that fails in it may fail the training."""
        trainer, batch, own, why = self._trainer, self._batch, {}, ""
        with one_step_earlier(trainer, self._stepped):
            try:
                arguments = (trainer, module, look.model, batch, batch_idx, self._drawn, self._scaler)
                own = forward_and_backward(*arguments)
            except Exception as error:
                why = _said(error)
            if well := self._all_well(why):
                if self._stepped:
                    average_gradients(trainer, look.optimizer)
                well = self._all_well(why := self._step(look, own))
        if well:
            look.note(loss_of(outputs), loss_of(own), self._stepped)
            self._engine.ledger.book_beside(batch)
            if not look.done:  # that of the module is yet to come
                well = self._all_well(why := self._end(look, own, batch, batch_idx))
        if not well:
            self._give_up(f"its training step fails ({why or 'on another process'})")
        return well

    def _step(self, look: _Second, own: dict[str, Any]) -> str:
        if not self._stepped or (self._scaler is not None and "loss" not in own):
            return ""
        try:
            look.take_rates()
            with drawing_again(look.model.device):
                step(self._trainer, look.model, look.optimizer, self._scaler)
        except Exception as error:
            return _said(error)
        return ""

    def _end(self, look: _Second, own: dict[str, Any], batch: Any, batch_idx: int) -> str:
        try:
            end_batch(look.model, own, batch, batch_idx)
        except Exception as error:
            return _said(error)
        return ""

    def _decide(self, look: _Second, module: LightningModule) -> None:
        told = torch.tensor([look.gain, look.error], device=module.device)
        gain, error = self._engine.processes.agree(self._trainer.strategy.reduce(told, reduce_op="mean").tolist())
        self._look, self._scaler, self._batch, self.over = None, None, None, True
        stays, steps = how_much_stays(self._sure, gain, error, self._likely), self._engine.timeline.steps
        released = self._keep(stays)
        self._engine.timeline.look = Look(steps - look.steps, look.steps, gain, error, stays, released)
        if not stays:
            look.hand_over(module, self._engine.run.optimizers[0])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        look = self._state if self._look is None else self._look.state_dict()
        return {"over": self.over, "unchecked": self._unchecked, "look": look, "rates": self._rates}


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
