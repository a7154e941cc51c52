"""Sentences of CoLA or MRPC as token batches. Needs the extra ``text``."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from smartfrz_lightning.experiments.glue_files import Example, read_glue
from smartfrz_lightning.extras import require

require("transformers", "text")

from transformers import AutoTokenizer  # noqa: E402


class GlueDataModule(LightningDataModule):
    """CoLA or MRPC from the files of their distribution, see ``read_glue``.

    Batches are dictionaries: ``input_ids``, ``attention_mask`` (and ``token_type_ids`` where the model has them)
    ``[batch, tokens]``, ``labels`` ``[batch]``.

    Args:
        train: File of the training rows.
        validation: File or files of the validation rows, taken as one set.
        task: ``"cola"`` or ``"mrpc"``.
        tokenizer: Name on the Hugging Face hub, or a local folder; that of the model.
        batch_size: Rows a batch.
        max_length: Tokens a row at most; longer ones are cut.
        pad: ``"longest"`` pads to the longest row of a batch; ``"max_length"`` always, so that all batches cost the
            same.
        train_rows: Take only so many training rows, drawn at random once and for all; all if ``None``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is broken, or ``train_rows`` is more than there are.
        OSError: There is no such tokenizer.
    """

    def __init__(
        self,
        train: str,
        validation: str | list[str],
        task: Literal["cola", "mrpc"],
        tokenizer: str,
        batch_size: int = 32,
        max_length: int = 128,
        pad: Literal["longest", "max_length"] = "longest",
        train_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.max_length = max_length
        self.pad = pad
        self._train = _draw(read_glue(train, task), train_rows)
        files = [validation] if isinstance(validation, str) else validation
        self._validation = [example for file in files for example in read_glue(file, task)]
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except OSError as error:
            raise OSError(f"tokenizer={tokenizer!r} is no local folder and cannot be downloaded: {error}") from error
        if self._tokenizer.pad_token is None:  # decoders have none
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def train_dataloader(self) -> DataLoader:
        whole = len(self._train) >= self.batch_size  # fewer rows are one short batch
        return self._loader(self._train, self.batch_size, shuffle=True, drop_last=whole)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self._validation, 4 * self.batch_size)

    def _loader(self, examples: Sequence[Example], batch_size: int, **settings: Any) -> DataLoader:
        # A sequence is a map-style data set.
        return DataLoader(examples, batch_size, collate_fn=self._batch, **settings)  # type: ignore[arg-type]

    def _batch(self, examples: list[Example]) -> dict[str, Tensor]:
        columns = [list(column) for column in zip(*(example.sentences for example in examples), strict=True)]
        tokens = self._tokenizer(
            *columns, padding=self.pad, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {**tokens, "labels": torch.tensor([example.label for example in examples])}


def _draw(examples: list[Example], count: int | None) -> list[Example]:
    if count is None:
        return examples
    if not 1 <= count <= len(examples):
        raise ValueError(f"train_rows={count}: there are {len(examples)} training rows")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    return [examples[index] for index in sorted(order[:count].tolist())]
