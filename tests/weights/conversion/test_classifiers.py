"""A classifier's head goes along in every dialect that has one, with the number of its classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from gptbridge.errors import BadInput, UsageError
from gptbridge.weights.conversion.verifying import verify
from gptbridge.weights.dialects.huggingface import config_of
from tests.weights.conversion.checkpoints import (
    MODEL,
    assert_identical,
    converted,
    digest_of,
    facts_of,
    random_weights,
    weights_of,
)
from tests.weights.conversion.conftest import HuggingFace

LABELS = 3
FORMS = [
    ("torch", None),
    ("torch", "GPT2LMHeadModel"),
    ("gptbridge", None),
    ("paddle", None),
    ("mindspore", None),
    ("fleetx", None),
    ("fleetx", "split"),
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT2ForSequenceClassification as transformers saves it."""
    folder = tmp_path_factory.mktemp("classifier") / "original"
    folder.mkdir()
    weights = {f"transformer.{name}": value for name, value in random_weights(MODEL).items()}
    stream = np.random.default_rng(8)
    weights["score.weight"] = stream.normal(size=(LABELS, MODEL.hidden_size)).astype(np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        **config_of(MODEL),
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": {str(n): f"LABEL_{n}" for n in range(LABELS)},
        "label2id": {f"LABEL_{n}": n for n in range(LABELS)},
        "pad_token_id": 7,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def forms(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None], Path]:
    folder = tmp_path_factory.mktemp("forms")
    return {
        form: converted(classifier, folder / f"{n}", form[0], variant=form[1]) for n, form in enumerate(FORMS)
    }


def test_the_head_survives_every_way(forms: Any, classifier: Path, tmp_path: Path) -> None:
    exact = weights_of(classifier)
    for number, (form, folder) in enumerate(forms.items()):
        facts = facts_of(folder)
        assert (facts.num_labels, facts.digest) == (LABELS, f"sha256:{digest_of(classifier)}"), form
        back = converted(folder, tmp_path / f"{number}", "torch", variant="GPT2LMHeadModel")
        assert_identical(weights_of(back), exact)


def test_configurations_say_how_many_classes(forms: Any) -> None:
    torch = json.loads((forms["torch", None] / "config.json").read_text())
    assert torch["architectures"] == ["GPT2ForSequenceClassification"]
    assert len(torch["id2label"]) == LABELS
    assert torch["pad_token_id"] == 7
    paddle = json.loads((forms["paddle", None] / "config.json").read_text())
    assert paddle["architectures"] == ["GPTForSequenceClassification"]
    assert (paddle["num_labels"], paddle["pad_token_id"]) == (LABELS, 7)
    older = json.loads((forms["paddle", None] / "model_config.json").read_text())
    assert (older["init_class"], older["num_classes"]) == ("GPTForSequenceClassification", LABELS)
    mindspore = yaml.safe_load((forms["mindspore", None] / "model.yaml").read_text())["model"]
    assert mindspore["arch"]["type"] == "GPT2ForSequenceClassification"
    assert mindspore["model_config"]["num_labels"] == LABELS
    fleetx = yaml.safe_load((forms["fleetx", None] / "model.yaml").read_text())["Model"]
    assert (fleetx["module"], fleetx["num_classes"]) == ("GPTFinetuneModule", LABELS)


def test_verify_sees_the_head(forms: Any, classifier: Path, tmp_path: Path) -> None:
    assert verify(classifier, forms["paddle", None]).passed
    other = converted(classifier, tmp_path / "other", "torch")
    weights = weights_of(other)
    weights["score.weight"] = weights["score.weight"][::-1].copy()
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert not verify(classifier, other).passed
    assert digest_of(other) != digest_of(classifier)


@pytest.mark.parametrize("dialect", ["megatron", "modelscope"])
def test_a_dialect_without_classifiers_is_refused(dialect: str, classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has a classifier's head"):
        converted(classifier, tmp_path / "out", dialect)


@pytest.mark.parametrize("form", [("torch", None), ("paddle", None), ("mindspore", None), ("fleetx", None)])
def test_another_number_of_classes_is_refused(form: Any, forms: Any, tmp_path: Path) -> None:
    folder = converted(forms[form], tmp_path / "out", form[0])
    (file,) = (file for file in folder.iterdir() if file.name in ("config.json", "model.yaml"))
    (folder / "model_config.json").unlink(missing_ok=True)
    text = file.read_text()
    changed = text.replace('"2": "LABEL_2"', '"2": "LABEL_2", "3": "LABEL_3"')
    for key in ('num_labels": ', "num_labels: ", "num_classes: "):
        changed = changed.replace(f"{key}{LABELS}", f"{key}{LABELS + 1}")
    assert changed != text
    file.write_text(changed)
    with pytest.raises(BadInput, match=r"says 4 classes, but score.weight has 3"):
        digest_of(folder)


@pytest.mark.timeout(200)
def test_transformers_opens_the_classifier_with_the_same_logits(
    forms: Any, classifier: Path, hugging_face: HuggingFace, tmp_path: Path
) -> None:
    expected = hugging_face.logits(classifier, classifier=True)
    assert expected.shape == (1, LABELS)
    for number, (form, path) in enumerate(forms.items()):
        folder = converted(path, tmp_path / f"{number}", "torch")
        assert np.abs(hugging_face.logits(folder, classifier=True) - expected).max() < 1e-6, form
