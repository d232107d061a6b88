"""Every preset loads, says what it reproduces, and has the published number of parameters."""

import pytest

from gptbridge.weights.architecture import count_parameters
from gptbridge_specs import load_model, load_run
from gptbridge_specs.presets import preset_names, read_preset

# Billions, as the systems' own documents and papers round them.
PUBLISHED = {
    "gpt2-small": "0.1244",
    "gpt2-medium": "0.3548",
    "gpt2-large": "0.7740",
    "gpt2-xl": "1.5576",
    "paddlenlp-gpt3-13b": "12.85",
    "cpm-large": "2.597",
    "cpm-small-distill": "0.109",
    "fleetx-345m": "0.3549",
    "fleetx-1.3b": "1.3137",
    "fleetx-6.7b": "6.654",
    "fleetx-13b": "12.865",
    "fleetx-175b": "174.6",
    "mindformers-gpt2-xl": "1.5576",
    "mindformers-gpt2-13b": "12.853",
    "cerebras-gpt-13b": "12.853",
    "mindformers-gpt2-52b": "51.97",
    "modelscope-gpt3-base": "0.106",
    "modelscope-gpt3-large": "0.331",
    "modelscope-gpt3-1.3b": "1.265",
    "modelscope-gpt3-2.7b": "2.588",
    "modelscope-gpt3-13b": "12.73",
    "modelscope-gpt3-30b": "29.80",
    "modelscope-gpt3-175b": "174.3",
}


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_parameter_count_is_the_published_one(name: str, billions: str) -> None:
    digits = len(billions.partition(".")[2])
    assert f"{count_parameters(load_model(name)) / 1e9:.{digits}f}" == billions


def test_only_small_test_models_have_no_published_count() -> None:
    assert set(preset_names("models")) - set(PUBLISHED) == {"gpt2-tiny", "paddlenlp-gpt2-small-en"}


@pytest.mark.parametrize("name", preset_names("runs"))
def test_run_preset_loads_and_says_what_it_reproduces(name: str) -> None:
    assert len(read_preset("runs", name).reproduces) > 40
    assert load_run(name).training.seq_length <= load_run(name).model.max_position_embeddings


def test_preset_overrides_the_preset_it_starts_from() -> None:
    base, derived = load_run("fleetx-1.3b-single-card"), load_run("fleetx-1.3b-dp8")
    assert derived.parallel.data == 8
    assert derived.training.global_batch_size == 64
    assert derived.training.recompute == "full"
    assert derived.model == base.model == load_model("fleetx-1.3b")


def test_name_of_a_model_preset_is_a_run_with_that_model() -> None:
    assert load_run("gpt2-small").model == load_model("gpt2-small")
