"""What importing says alike of every system: nothing is dropped silently, nonsense is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptbridge_specs import SpecError, load_run
from gptbridge_specs.imports import import_file
from tests.specs.imports.reading import Files, refusal, value
from tests.specs.imports.texts import MEGATRON, MINDFORMERS, PADDLENLP, changed

SYSTEMS = {
    "mindformers": ("run.yaml", MINDFORMERS),
    "paddlenlp": ("run.sh", PADDLENLP),
    "megatron": ("run.sh", MEGATRON),
}


@pytest.mark.parametrize(
    ("system", "old", "new", "said"),
    [
        ("mindformers", "do_eval: False", "do_eval: False\ndo_evall: 1", "Did you mean do_eval?"),
        ("mindformers", "beta2: 0.95", "betta2: 0.95", "Did you mean optimizer.beta2?"),
        ("mindformers", "expert_num: 1", "expert_num: 2", "mixtures of experts"),
        ("mindformers", "parallel_mode: 0", "parallel_mode: 2", "states no layout"),
        ("mindformers", "scale_factor: 2", "scale_factor: 4", "doubled and halved"),
        ("mindformers", "layer_scale: False", "layer_scale: True", "one learning rate"),
        ("mindformers", '"gelu"', '"relu"', "not one of gelu, fast_gelu"),
        ("mindformers", "batch_size: 4,", "batch_size: four,", "batch_size = four: is not a number"),
        ("mindformers", "epochs: 3", "epochs: -3", "runner_config.epochs: training.epochs"),
        ("paddlenlp", "--grad_clip 1.0", "--grad_clipp 1.0", "Did you mean grad_clip?"),
        ("paddlenlp", "--min_lr 0.00001", "--min_lr 0.001", "min_lr=0.001 is above max_lr=0.0001"),
        ("paddlenlp", "--global_batch_size 4", "--global_batch_size 8", "x data x sharding gives 4"),
        ("paddlenlp", "gpt2-en", "gpt5-en", "no folder with model_config.json"),
        ("paddlenlp", "--device gpu", "--device xpu", "not one of gpu, cpu, npu"),
        ("megatron", "--fp16", "--fp16 --swiglu", "another architecture"),
        ("megatron", "--fp16", "--fp16 --rampup-batch-size 16 16 5859", "the same size in every step"),
        ("megatron", "--fp16", "--fp16 --num-layer 3", "Did you mean num-layers?"),
        ("megatron", "--fp16", "--fp16 --bf16", "--fp16 says otherwise"),
        ("megatron", "--fp16", "--fp16 --fp16", "--fp16 stands twice"),
        ("megatron", "--fp16", "--fp16 --seed $(date +%s)", "only a shell could tell"),
        ("megatron", "--fp16", "--fp16 --seed $SEED", "is not set in the script; give it with -o SEED=VALUE"),
        ("megatron", "--fp16", "--fp16 --model-parallel-size 2", "an old name: --tensor-model-parallel-size"),
        ("megatron", "--vocab-size 50257 ", "", "give --vocab-size N"),
        ("megatron", "--train-iters 500000", "--train-iters 5 --train-samples 80", "one of --train-iters"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(files: Files, system: str, old: str, new: str, said: str) -> None:
    name, text = SYSTEMS[system]
    files.read(name, text)
    assert said in refusal(files.read, name, changed(text, (old, new)))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a file of Linux")
@pytest.mark.parametrize(("name", "said"), [("run.sh", "no arguments of"), ("run.json", "not JSON")])
def test_a_file_of_the_system_that_may_never_end_is_not_waited_for(
    tmp_path: Path, name: str, said: str
) -> None:
    """All sizes in /proc are 0, and reading some of it (kmsg) waits for what may come."""
    (tmp_path / name).symlink_to("/proc/self/environ")
    with pytest.raises(SpecError, match=said):
        import_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "left_out", "field"),
    [
        ("run.yaml", MINDFORMERS, "learning_rate: 0.0001, ", "schedule.max_lr"),
        ("a.sh", MEGATRON, "--lr 0.00015 ", "schedule.max_lr"),
        ("a.sh", MEGATRON, "--num-layers 24", "model.num_layers"),
        ("a.sh", MEGATRON, "--seq-length 1024 ", "training.seq_length"),
    ],
)
def test_no_default_of_ours_steps_in(files: Files, name: str, text: str, left_out: str, field: str) -> None:
    """What a run stands on must be said by the configuration, or by whoever imports it."""
    short = changed(text, (left_out, ""))
    assert f"nothing in it says {field}: give -o {field}=VALUE" in refusal(files.read, name, short)
    assert value(files.read(name, short, f"{field}=2").spec, field) == 2  # layers for two stages


@pytest.mark.parametrize("name", ["a.yaml", "a.json", "a.sh", "a.txt"])
@pytest.mark.parametrize(
    "text", ["", "a: 1", "{}", "[1]", "\x00", "--", "$(rm -rf .) --lr 1", "{" * 9999, "--lr ${lr}"]
)
def test_nonsense_is_one_line(files: Files, name: str, text: str) -> None:
    said = refusal(files.read, name, text)
    assert said.startswith(str(files.folder / name))


def test_what_grows_without_end_is_refused(files: Files) -> None:
    bomb = "A0=x\n" + "".join(f'A{n}="$A{n - 1}$A{n - 1}$A{n - 1}$A{n - 1}"\n' for n in range(1, 19))
    assert "more than 1 MB" in refusal(files.read, "a.sh", f"{bomb}python pretrain_gpt.py --lr $A18\n")
    assert "is not set" in refusal(files.read, "a.sh", "A=$B\nB=$A\npython pretrain_gpt.py --lr $A\n")
    files.read("open.sh", MEGATRON + '\necho "' + "\nx" * 100_000)
    many = json.dumps({"framework": 1, "pipeline": 2, "model": 3, **{f"k{n}": n for n in range(20_000)}})
    assert "no such key" in refusal(files.read, "configuration.json", many)


def test_overrides_set_fields_and_keys(files: Files) -> None:
    imported = files.read(
        "run.yaml", MINDFORMERS, "training.max_steps=5", "runner_config.batch_size=6", "training.epochs=null"
    )
    assert imported.spec.training.global_batch_size == 6
    assert (imported.spec.training.max_steps, imported.spec.training.epochs) == (5, None)
    assert "unknown key" in refusal(files.read, "run.yaml", MINDFORMERS, "training.max_step=5")


def test_what_is_written_is_read_back(files: Files) -> None:
    for name, text in (("run.sh", PADDLENLP), ("run.yaml", MINDFORMERS), ("m.sh", MEGATRON)):
        imported = files.read(name, text)
        (files.folder / "spec.yaml").write_text(imported.yaml())
        assert load_run(str(files.folder / "spec.yaml")) == imported.spec
