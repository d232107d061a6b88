"""From files and overrides to a spec; every problem named, nothing run."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptbridge_specs import RunSpec, SpecError, dump_yaml, load_run
from gptbridge_specs.yaml_files import read_mapping


def problems(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        load_run("gpt2-tiny", overrides)
    return caught.value.problems


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "spec.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_overrides_reach_every_kind_of_field() -> None:
    overrides = [
        "schedule.max_lr=6e-4",
        "training.max_steps=7",
        "training.compile=true",
        "data.split=[90, 10, 0]",
        "optimizer.clip_grad_norm=null",
        'task.lora={"rank": 4}',
        "precision.loss_scale=128",
        "model.hidden_size=64",
    ]
    spec = load_run("gpt2-tiny", overrides)
    assert spec.schedule.max_lr == 6e-4
    assert spec.training.max_steps == 7
    assert spec.training.compile is True
    assert spec.data.split == (90, 10, 0)
    assert spec.optimizer.clip_grad_norm is None
    assert spec.task.lora is not None
    assert spec.task.lora.rank == 4
    assert spec.precision.loss_scale == 128
    assert spec.model.hidden_size == 64


def test_a_preset_replaces_the_model_that_was_there() -> None:
    assert load_run("gpt2-tiny", ["model.preset=gpt2-small"]) == load_run("gpt2-tiny", ["model=gpt2-small"])
    model = load_run("gpt2-tiny", ["model.preset=gpt2-small", "model.vocab_size=300"]).model
    assert (model.hidden_size, model.vocab_size) == (768, 300)


@pytest.mark.parametrize("preset", ["model.preset=gpt2-small", "model=gpt2-small"])
def test_a_preset_undoes_no_other_override(preset: str) -> None:
    overrides = ["model.num_layers=2", preset, "model.num_layers=3"]
    model = load_run("gpt2-tiny", overrides[:2]).model
    assert (model.hidden_size, model.num_layers) == (768, 2)
    assert load_run("gpt2-tiny", overrides).model.num_layers == 3


def test_split_takes_the_seeds_form() -> None:
    assert load_run("gpt2-tiny", ["data.split=949,50,1"]).data.split == (949, 50, 1)
    assert load_run("gpt2-tiny", ["data.split=9/1"]).data.split == (9, 1, 0)


def test_all_problems_are_told_at_once() -> None:
    found = problems(
        "training.max_step=5", "model.hiden_size=1", "training.seed=x", "training.micro_batch_size=3"
    )
    assert "training.max_step: unknown key. Did you mean training.max_steps?" in found
    assert "model.hiden_size: unknown key. Did you mean model.hidden_size?" in found
    assert "training.seed: 'x' is not a whole number" in found


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainin.max_steps=4", "Did you mean training?"),
        ("training.max_steps", "section.field=value"),
        ("=4", "section.field=value"),
        ("training.max_steps=0", "training.max_steps"),
        ("training.max_steps=1.5", "training.max_steps"),
        ("training.seq_length=512", "model.max_position_embeddings=256"),
        ("training.micro_batch_size=3", "does not divide"),
        ("parallel.data=3", "is not a multiple of"),
        ("model.num_attention_heads=3", "does not divide"),
        ("model.activation=relu", "gelu_tanh"),
        ("model.layernorm_epsilon=nan", "model.layernorm_epsilon"),
        ("schedule.max_lr=1e400", "schedule.max_lr"),
        ("schedule.min_lr=1", "swap them"),
        ("data.split=[0,0,0]", "not all 0"),
        ("data.split=[1,", "like JSON"),
        ("model.vocab_size=1000000000000", "model.vocab_size"),
        ("model=nosuch", "nosuch: no such model preset"),
        ("hidden_size=64", "Did you mean model.hidden_size?"),
        ("training=3", "training: '3' is not a section of fields"),
        ("foo=1", "A run has: model, data"),
        ("training.zzz=1", "training has: max_steps"),
        ("training.seed.x=1", "training.seed"),
        ("task.name=classification", "task.num_labels"),
    ],
)
def test_wrong_override_is_explained(override: str, words: str) -> None:
    assert words in "\n".join(problems(override))


@pytest.mark.parametrize(
    ("broken", "near"),
    [
        ("parallel.sequence=true", "false, or parallel.tensor=2"),
        ("parallel.sharding_stage=2", "0, or parallel.sharding=2"),
        ("parallel.virtual_pipeline=2", "1, or parallel.pipeline=2"),
        ("parallel.virtual_pipeline=4 parallel.pipeline=2", "virtual_pipeline 2 would be"),
        ("parallel.virtual_pipeline=3 parallel.pipeline=3", "2 or 4 would be, with virtual_pipeline 1"),
        (
            "parallel.virtual_pipeline=2 parallel.pipeline=2 training.global_batch_size=3 "
            "training.micro_batch_size=1",
            "training.global_batch_size=4 with training.micro_batch_size=1 would do",
        ),
        (
            "parallel.pipeline=4 training.global_batch_size=2",
            "training.global_batch_size=4 with training.micro_batch_size=1 would do",
        ),
        ("parallel.tensor=4 model.vocab_size=3", "2 would be"),
        ("parallel.data=3", "6 or 9 would be"),
        ("training.micro_batch_size=3", "2 or 4 would be"),
        ("model.num_attention_heads=3", "2 or 4 would be"),
    ],
)
def test_a_broken_equation_names_the_nearest_that_holds(broken: str, near: str) -> None:
    (line,) = problems(*broken.split())
    assert line.endswith(f": {near}")


@pytest.mark.parametrize(
    "mended",
    [
        "parallel.sequence=true parallel.tensor=2",
        "parallel.sharding_stage=2 parallel.sharding=2",
        "parallel.virtual_pipeline=2 parallel.pipeline=2 training.micro_batch_size=4",
        "parallel.virtual_pipeline=2 parallel.pipeline=2 training.global_batch_size=4 "
        "training.micro_batch_size=1",
        "parallel.virtual_pipeline=2 parallel.pipeline=2 training.global_batch_size=3 "
        "training.micro_batch_size=1 parallel.pipeline_schedule=gpipe",
        "parallel.pipeline=4 training.global_batch_size=4 training.micro_batch_size=1",
        "parallel.tensor=2 model.vocab_size=3",
    ],
)
def test_the_nearest_that_holds_is_accepted(mended: str) -> None:
    assert load_run("gpt2-tiny", mended.split()).parallel.world_size > 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {max_steps: 1, max_steps: 2}", "stands twice"),
        ("training: !!python/object/apply:os.system [id]", "tag"),
        ("model: !!set {num_layers}", "tag"),
        ("data: !!binary aGk=", "tag"),
        ("training: {seed: true}", "training.seed"),
        ("a: 1\n---\nb: 2", "spec.yaml:2: a second document"),
        ("training:\n\tseed: 1", "spec.yaml:2: a tab"),
        ("training:", "training: None is not a section"),
        ("- 1", "mapping"),
        ("training: [", "spec.yaml:2: "),
        (b"\xff\xfe\x00", "UTF-8"),
        ("a: " + "[" * 60 + "]" * 60, "levels deep"),
        ("a: &a [*a]", "contains itself"),
        ("? [1, 2]\n: 3", "plain text"),
        ("preset: nosuch", "no such preset"),
        ("x: " + "y" * (1 << 20), "larger than 1 MB"),
        ("training: {max_steps: .inf}", "training.max_steps"),
    ],
)
def test_bad_file_is_refused_by_name(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_run(written(tmp_path, text))
    assert words in str(caught.value)


def test_a_key_that_holds_control_characters_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_run(written(tmp_path, r'"\e[2J\n": 1'))
    assert r"spec.yaml:1: \x1b[2J\n: unknown key" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("link", ["{0}", "<<: {0}"])
def test_alias_and_merge_bombs_are_refused_quickly(tmp_path: Path, link: str) -> None:
    lines = ["a0: &a0 {k: 1}"]
    for level in range(1, 40):
        pair = f"[*a{level - 1}, *a{level - 1}]"
        body = pair if link == "{0}" else f"{{<<: {pair}}}"
        lines.append(f"a{level}: &a{level} {body}")
    start = time.perf_counter()
    with pytest.raises(SpecError, match="aliases are written out"):
        load_run(written(tmp_path, "\n".join(lines)))
    assert time.perf_counter() - start < 5


def test_benign_neighbours_load(tmp_path: Path) -> None:
    text = "\ufeffpreset: gpt2-tiny\noptimizer: {beta1: 9e-1}\nschedule: {max_lr: 1e-3}\n"
    spec = load_run(written(tmp_path, text))
    assert spec.schedule.max_lr == 1e-3
    assert spec.optimizer.beta1 == 0.9
    aliased = read_mapping(Path(written(tmp_path, "a: &x {k: no}\nb: *x\nc: {<<: *x, z: 1}")))
    assert aliased == {"a": {"k": "no"}, "b": {"k": "no"}, "c": {"k": "no", "z": 1}}


def test_file_starts_from_a_preset(tmp_path: Path) -> None:
    path = written(tmp_path, "preset: gpt2-tiny\nmodel: {preset: gpt2-small, hidden_dropout_prob: 0}\n")
    spec = load_run(path, ["training.max_steps=3"])
    assert (spec.model.hidden_size, spec.model.hidden_dropout_prob, spec.training.max_steps) == (768, 0, 3)


@given(
    steps=st.integers(1, 10**9),
    rate=st.floats(1e-300, 1e300),
    epsilon=st.floats(1e-12, 0.5),
    clip=st.none() | st.floats(1e-30, 1e30),
)
def test_yaml_carries_every_number_exactly(
    tmp_path_factory: pytest.TempPathFactory, steps: int, rate: float, epsilon: float, clip: float | None
) -> None:
    overrides = [
        f"training.max_steps={steps}",
        f"schedule.max_lr={rate!r}",
        "schedule.min_lr=0",
        f"model.layernorm_epsilon={epsilon!r}",
        f"optimizer.clip_grad_norm={'null' if clip is None else repr(clip)}",
    ]
    spec = load_run("gpt2-tiny", overrides)
    assert spec.schedule.max_lr == rate
    assert load_run(written(tmp_path_factory.mktemp("yaml"), dump_yaml(spec))) == spec
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
