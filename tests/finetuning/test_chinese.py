"""The commands of docs/chinese.md run on each backend, with vocabularies of text that is written for them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from gptbridge.data.tokenizers import load_tokenizer
from tests.finetuning.test_docs import DOCS, SCRIPT, commands, write_lines
from tests.training.conftest import ENVIRONMENT

pytest.importorskip("jieba")
pytest.importorskip("sentencepiece")
PLACES = ("春風", "秋月", "青山", "白雲", "江水", "孤舟")
DEEDS = ("滿江樓", "照我衣", "入夢來", "過竹林")
PEOPLE = ("小明", "小紅", "老王", "老李", "阿方", "阿梅")
CITIES, THINGS = ("北京", "上海"), ("喝茶", "讀書")


def poem(number: int) -> str:
    lines = [PLACES[(number + k) % 6] + DEEDS[(number // 6 + k) % 4] for k in range(4)]
    return f"{PLACES[number % 6]}\n{lines[0]}，{lines[1]}。\n{lines[2]}，{lines[3]}。"


def passages() -> list[tuple[str, str, str]]:
    """Return passages with an answer that stands in them and the question that it answers."""
    found = []
    for who, city, thing in product(PEOPLE, CITIES, THINGS):
        text = f"{who}住在{city}，他喜歡{thing}。"
        found += [(text, city, f"{who}住在哪裡？"), (text, thing, f"{who}喜歡什麼？")]
    return found


def records(name: str) -> list[dict[str, str]]:
    if name == "questions":
        return [{"text1": f"{answer}[SEP]{text}", "text2": asked} for text, answer, asked in passages()]
    if name == "texts":
        return [{"text": f"{answer}[SEP]{text}\n{asked}"} for text, answer, asked in passages()]
    return [{"text1" if name == "collection" else "text": poem(n)} for n in range(24)]


TEXT, ANSWER, QUESTION = passages()[5]
PROMPT = f"{ANSWER}[SEP]{TEXT}\n"


def run_commands(lines: list[str], backend: str, folder: Path) -> str:
    """Run command lines in one process; return what they print."""
    lines = [
        f"{line} -b {backend} -o training.device=cpu" if line.split()[1] in ("train", "generate") else line
        for line in lines
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *lines],
        cwd=folder, capture_output=True, text=True, timeout=800, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def require_learned(printed: str, folder: Path) -> None:
    """Check what was written after the two prompts, and the vocabularies that the runs carry."""
    answered = printed.split(PROMPT)[1].partition("\n")[0]
    assert answered == QUESTION.replace("？", "?")  # as SentencePiece writes it
    verse = printed.partition("窗含西嶺千秋雪")[2][:20]
    assert set(verse) & set("".join(PLACES + DEEDS))
    for run, words in (("poetry", "words"), ("questions", "pieces")):
        checkpoint = sorted((folder / f"runs/{run}/checkpoints").iterdir())[-1]
        assert load_tokenizer(str(checkpoint)).identity == load_tokenizer(str(folder / words)).identity


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the page's commands, run with torch, and what they printed."""
    folder = tmp_path_factory.mktemp("chinese")
    for name in ("poems", "texts", "collection", "questions"):
        write_lines(folder / f"{name}.jsonl", [json.dumps(r, ensure_ascii=False) for r in records(name)])
    (folder / "passage.txt").write_text(f"{PROMPT}\n")
    (spec,) = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / "chinese.md").read_text(), re.MULTILINE | re.DOTALL)
    (folder / "questions.yaml").write_text(spec)
    untrained = "gptbridge generate runs/texts --prompt-file passage.txt -o generation.max_new_tokens=20"
    return folder, run_commands([*commands("chinese.md"), untrained], "torch", folder)


@pytest.mark.timeout(900)
def test_every_command_runs(page: tuple[Path, str]) -> None:
    folder, printed = page
    require_learned(printed, folder)
    answered, unlearned = (text.partition("\n")[0] for text in printed.split(PROMPT)[1:])
    assert answered != unlearned, "the model knew it before it was fine-tuned"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["paddle", "mindspore"])
def test_other_backends_learn_the_same(backend: str, page: tuple[Path, str], tmp_path: Path) -> None:
    folder = shutil.copytree(page[0], tmp_path / "chinese")
    for run in ("poetry", "questions"):
        shutil.rmtree(folder / "runs" / run)
    lines = commands("chinese.md")[-4:]
    assert [line.split()[1] for line in lines] == ["train", "generate"] * 2
    require_learned(run_commands(lines, backend, folder), folder)
