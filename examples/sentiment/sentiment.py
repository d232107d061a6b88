"""Film reviews with ratings, from the source distribution of vaderSentiment, and a bag of words beside a GPT.

`python sentiment.py reviews ARCHIVE FOLDER` writes the reviews of `train.jsonl` and `test.jsonl`, every fifth
one, with class 1 where people rated the review above 0, and `text.jsonl` to pretrain on: the reviews of the
training split, and the archive's sentences from newspapers, shops and tweets, without their ratings.
`python sentiment.py compare FOLDER PREDICTIONS.jsonl` trains scikit-learn's bags of words on the same split,
and prints how often they and the classifier that wrote the predictions are right.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
OTHERS = ("amazonReviewSnippets", "nytEditorialSnippets", "tweets")


def rated(archive: tarfile.TarFile, name: str) -> Iterator[tuple[str, float]]:
    """Yield the texts of a file, each once, and their mean ratings.

    In lower case, and after a space: a word is the same token at the beginning as within a text.
    """
    file = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
    assert file is not None
    seen = set()
    for line in file.read().decode("utf-8-sig").splitlines():
        _, rating, text = line.split("\t")
        text = f" {' '.join(text.lower().split())}"
        if text not in seen:
            seen.add(text)
            yield text, float(rating)


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records, one a line."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    print(f"{path}: {len(records):,} records")


def reviews(source: Path, folder: Path) -> None:
    """Write the three files."""
    with tarfile.open(source) as outer:
        member = next(name for name in outer.getnames() if name.endswith(INNER))
        packed = outer.extractfile(member)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as archive:
            films = [
                {"text": text, "label": int(rating > 0)}
                for text, rating in rated(archive, "movieReviewSnippets")
            ]
            others = [text for name in OTHERS for text, _ in rated(archive, name)]
    train = [film for number, film in enumerate(films) if number % 5 != 4]
    write(folder / "train.jsonl", train)
    write(folder / "test.jsonl", films[4::5])
    write(folder / "text.jsonl", [{"src_txt": text} for text in [*(film["text"] for film in train), *others]])


def compare(folder: Path, predictions: Path) -> None:
    """Print the accuracy and F1 of two bags of words and of the predictions, all on the test split."""
    (texts, truth), (held, expected) = (columns(folder / f"{name}.jsonl") for name in ("train", "test"))
    said = {}
    for name, longest in (("bag of words", 1), ("bag of words and pairs", 2)):
        vectors = TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=True)
        model = make_pipeline(vectors, LogisticRegression(max_iter=1000))
        chosen = GridSearchCV(model, {"logisticregression__C": [1, 3, 10, 30]}).fit(texts, truth)
        said[f"{name}, C {chosen.best_params_['logisticregression__C']}"] = chosen.predict(held).tolist()
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert [line["label"] for line in lines] == expected
    said["pretrained GPT"] = [line["predicted"] for line in lines]
    print(f"{len(expected):,} reviews that no model has seen{'accuracy':>20}{'F1':>8}")
    for name, guesses in said.items():
        print(f"{name:<40}{accuracy_score(expected, guesses):>14.4f}{f1_score(expected, guesses):>8.4f}")


def columns(path: Path) -> tuple[list[str], list[int]]:
    """Return the texts and the classes of a file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["text"] for line in lines], [line["label"] for line in lines]


if __name__ == "__main__":
    what, source, target = sys.argv[1:]
    (reviews if what == "reviews" else compare)(Path(source), Path(target))
