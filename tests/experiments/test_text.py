"""Sentences: reading the files, batches, the classifier and its measures."""

import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from small_bert import bert

from smartfrz_lightning import AttentionFreezeCallback, extras
from smartfrz_lightning.experiments import text_classifier
from smartfrz_lightning.experiments.glue_files import read_glue
from smartfrz_lightning.experiments.text import GlueDataModule
from smartfrz_lightning.experiments.text_classifier import TextClassifier

COLA = Path(__file__).parents[2] / "data" / "cola"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_quotes_and_odd_characters_are_text(tmp_path):
    rows = 'gj04\t1\t\t"So," she said, "go.\ngj04\t0\t*\tIt\u2028\x85was\n'
    first, second = read_glue(write(tmp_path / "a.tsv", rows), "cola")
    assert first.sentences == ('"So," she said, "go.',) and first.label == 1
    assert second.sentences == ("It\u2028\x85was",) and second.label == 0


@pytest.mark.parametrize(
    "head", ["", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n", "\ufeffQuality\t#1\t#2\ta\tb\r\n"]
)
def test_mrpc_with_and_without_a_header(tmp_path, head):
    examples = read_glue(write(tmp_path / "a.txt", head + "1\t10\t20\tOne.\tTwo.\r\n0\t1\t2\tA.\tB.\r\n"), "mrpc")
    assert [(e.sentences, e.label) for e in examples] == [(("One.", "Two."), 1), (("A.", "B."), 0)]


@pytest.mark.parametrize("row", ["gj04\t1\tA sentence.", "gj04\tyes\t\tA sentence.", "gj04\t1\t\t ", ""])
def test_broken_rows(tmp_path, row):
    message = (
        "a.tsv, row 2: .* is no row of cola, which has 4 columns .* 0 or 1 in column 2 and sentences from column 4"
    )
    with pytest.raises(ValueError, match=message):
        read_glue(write(tmp_path / "a.tsv", f"gj04\t1\t\tFine.\n{row}\ngj04\t1\t\tFine.\n"), "cola")


def test_other_bad_input(tmp_path):
    with pytest.raises(ValueError, match="task='sst2': one of .'cola', 'mrpc'."):
        read_glue(tmp_path, "sst2")
    with pytest.raises(ValueError, match="has no rows"):
        read_glue(write(tmp_path / "a.tsv", ""), "cola")
    file = str(write(tmp_path / "a.tsv", "gj04\t1\t\tFine.\n"))
    with pytest.raises(ValueError, match="train_rows=5: there are 1 training rows"):
        GlueDataModule(file, file, "cola", "nothing", train_rows=5)
    with pytest.raises(OSError, match="tokenizer='nowhere/at-all' is no local folder and cannot be downloaded"):
        GlueDataModule(file, file, "cola", "nowhere/at-all")
    with pytest.raises(ValueError, match="warmup=2: give a share"):
        TextClassifier("nothing", warmup=2)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "transformers" else find_spec(name))
    with pytest.raises(ImportError, match=r"this needs transformers: pip install 'smartfrz-lightning\[text\]'"):
        importlib.reload(text_classifier)


def test_fine_tuning_with_freezing_and_the_measures(tmp_path, make_trainer):
    rows = "".join(f"gj04\t{n % 2}\t\tThe {'bell rang' if n % 2 else 'ring'}.\n" for n in range(64))
    file = str(write(tmp_path / "a.tsv", rows))
    torch.manual_seed(0)
    folder = bert(tmp_path / "bert")
    data = GlueDataModule(file, [file, file], "cola", folder, batch_size=8, train_rows=48)
    model = TextClassifier(folder, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    assert model.model.bert.embeddings.word_embeddings.weight.shape == (11, 16)
    freezer = AttentionFreezeCallback(front_only=True, threshold=0.01, snapshot_every_n_steps=1, every_n_epochs=9)
    trainer = make_trainer(freezer, max_epochs=10)
    trainer.fit(model, datamodule=data)
    assert freezer.frozen[0].startswith("model.bert.embeddings.") and freezer.timeline.saved > 0
    logged = trainer.validate(model, datamodule=data, verbose=False)[0]
    batches = list(data.val_dataloader())
    labels = torch.cat([batch.pop("labels") for batch in batches])
    model.eval()
    guesses = torch.cat([model(**batch).argmax(-1) for batch in batches])
    assert len(labels) == 128
    assert logged["val_accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    assert logged["val_f1"] == pytest.approx(f1_score(labels, guesses))
    assert logged["val_matthews"] == pytest.approx(matthews_corrcoef(labels, guesses), abs=1e-6)
    assert logged["val_matthews"] > 0.9, "two different sentences could not be told apart"


def test_pairs_are_told_apart_by_token_types(tmp_path):
    file = str(write(tmp_path / "a.txt", "1\t1\t2\tThe bell rang.\tThe bell.\n" * 4))
    data = GlueDataModule(file, file, "mrpc", bert(tmp_path / "bert"), max_length=16, pad="max_length", batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (4, 16) and batch["token_type_ids"].max() == 1


def test_a_decoder_and_a_head_of_another_size(tmp_path, make_trainer):
    from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

    tokens = PreTrainedTokenizerFast.from_pretrained(bert(tmp_path / "bert"), pad_token=None, eos_token="[SEP]")
    tokens.pad_token = None
    tokens.save_pretrained(tmp_path / "gpt")
    config = GPT2Config(vocab_size=11, n_embd=16, n_layer=1, n_head=2, eos_token_id=3, bos_token_id=3, num_labels=5)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "gpt")
    file = str(write(tmp_path / "a.tsv", "gj04\t1\t\tThe bell rang.\ngj04\t0\t*\tThe ring.\n" * 4))
    data = GlueDataModule(file, file, "cola", str(tmp_path / "gpt"), batch_size=4)
    model = TextClassifier(str(tmp_path / "gpt"))
    make_trainer(max_epochs=1).fit(model, datamodule=data)
    assert model(input_ids=torch.tensor([[5, 6], [5, 3]])).shape == (2, 2)
