"""LayerCallback: finds the model's layers in the first training step."""

import contextlib
import difflib
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from smartfrz_lightning.freezing.compiled import eager
from smartfrz_lightning.layers.layer import Layer, matches
from smartfrz_lightning.layers.tracer import LayerTracer


class LayerCallback(Callback):
    """Base of the callbacks that watch layers: it finds them by tracing the first training step of a fit.

    Args:
        exclude: Shell-style patterns of modules, layers or parameters that always train, such as ``"head"`` or
            ``"*.attn.*"``.

    Raises:
        ValueError: On ``fit``: the model has no trainable parameter, or a pattern matches nothing in it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from smartfrz_lightning.callbacks.layer_callback import LayerCallback
        >>> class ShowLayers(LayerCallback):
        ...     def on_layers_found(self, trainer, pl_module):
        ...         print([(layer.name, layer.size) for layer in self.layers])
        >>> Trainer(max_steps=1, accelerator="cpu", barebones=True, callbacks=[ShowLayers()]).fit(BoringModel())
        [('layer', 66)]
    """

    def __init__(self, exclude: Sequence[str] = ()) -> None:
        super().__init__()
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        self.layers: list[Layer] = []
        self._tracing: contextlib.ExitStack | None = None
        self._tracer: LayerTracer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            _check_patterns(self.exclude, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not any(parameter.requires_grad for parameter in pl_module.parameters()):
            raise ValueError(
                f"{type(pl_module).__name__} has no trainable parameter: set requires_grad=True on what should train"
            )

    def on_layers_found(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called once a fit, after the first training step, when ``self.layers`` is there."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.layers:
            self._tracer = LayerTracer(pl_module, self.exclude)
            self._tracing = contextlib.ExitStack()
            self._tracing.enter_context(eager())
            self._tracing.enter_context(self._tracer)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._tracing is not None and self._tracer is not None:
            self._tracer.leads_to(loss)
            if pl_module.automatic_optimization:
                self._stop_tracing()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._tracer is None:
            return
        self._stop_tracing()
        tracer, self._tracer = self._tracer, None
        if not tracer.saw_products:
            return  # a skipped step showed nothing: look at the next one
        self.layers = trainer.strategy.broadcast(tracer.layers())
        self.on_layers_found(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_tracing()

    def _stop_tracing(self) -> None:
        if self._tracing is not None:
            self._tracing.close()
            self._tracing = None


def _check_patterns(patterns: Sequence[str], model: nn.Module) -> None:
    names = [name for name, _ in [*model.named_modules(), *model.named_parameters()] if name]
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
            what = f"close names: {close}" if close else f"its names begin with {names[:5]}"
            raise ValueError(f"exclude={pattern!r} matches no module or parameter of {type(model).__name__}; {what}")
