"""The commands of docs/chinese.md run on each backend, with vocabularies of text that is written for them."""

from __future__ import annotations

import json
import re
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["torch", "paddle", "mindspore"])
def test_every_command_runs(backend: str, tmp_path: Path) -> None:
    for name in ("poems", "texts", "collection", "questions"):
        write_lines(tmp_path / f"{name}.jsonl", [json.dumps(r, ensure_ascii=False) for r in records(name)])
    text, answer, question = passages()[5]
    prompt = f"{answer}[SEP]{text}\n"
    (tmp_path / "passage.txt").write_text(f"{prompt}\n")
    lines = commands("chinese.md")
    (spec,) = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / "chinese.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "questions.yaml").write_text(spec)
    assert len(lines) == 10
    lines += ["gptbridge generate runs/texts --prompt-file passage.txt -o generation.max_new_tokens=20"]
    lines = [
        f"{line} -b {backend} -o training.device=cpu" if line.split()[1] in ("train", "generate") else line
        for line in lines
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *lines],
        cwd=tmp_path, capture_output=True, text=True, timeout=800, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    _, *written = done.stdout.split(prompt)
    answered, unlearned = (text.partition("\n")[0] for text in written)
    assert answered == question.replace("？", "?")  # as SentencePiece writes it
    assert unlearned != answered
    verse = done.stdout.partition("窗含西嶺千秋雪")[2][:20]
    assert set(verse) & set("".join(PLACES + DEEDS))
    for run, folder in (("poetry", "words"), ("questions", "pieces")):
        checkpoint = sorted((tmp_path / f"runs/{run}/checkpoints").iterdir())[-1]
        assert load_tokenizer(str(checkpoint)).identity == load_tokenizer(str(tmp_path / folder)).identity
