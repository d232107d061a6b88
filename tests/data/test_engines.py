"""Two libraries encode and train a byte-level BPE, and nothing depends on which one it is."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.data.tokenizers.bpe_reading import read_tokenizer_json
from gptbridge.data.tokenizers.engines import ENGINES, bpe_encoder, bpe_merges
from gptbridge.data.tokenizers.training import train_tokenizer
from tests.data.prepared import library_texts
from tests.data.test_tokenizers import HARD_TEXTS
from tests.data.test_tokenizers_hostile import split

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    (folder / "a.txt").write_text("\n".join(library_texts()))
    train_tokenizer([str(folder / "a.txt")], 1000, folder / "trained")
    return folder / "trained"


@pytest.mark.parametrize("pattern", [None, CL100K, CL100K.replace("{1,3}", "")])
def test_both_give_the_same_ids(trained: Path, pattern: str | None) -> None:
    content = read_tokenizer_json(trained / "tokenizer.json").tokenizer_json(special_in_text=False)
    if pattern:
        content["pre_tokenizer"] = split(pattern)
        content["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = True
    first, second = (bpe_encoder(content, engine) for engine in ENGINES)
    draw = random.Random(3)
    texts = ["".join(draw.choices("the  \n\t1234'S\u00e9\u4e16x.", k=200)) for _ in range(200)]
    for text in [*HARD_TEXTS, *library_texts()[:500], *texts]:
        assert first(text).tolist() == second(text).tolist()
        assert first(text).dtype == second(text).dtype
    for encode in (first, second):
        with pytest.raises((UnicodeEncodeError, TypeError)):
            encode("\ud800")
    with pytest.raises(UnicodeEncodeError):
        load_tokenizer(str(trained)).encode("\ud800")


def test_both_find_the_same_merges(tmp_path: Path) -> None:
    texts = [text for text in library_texts()[:3000] if "<|endoftext|>" not in text]
    corpus = tmp_path / "corpus"
    corpus.write_text("".join(text + "<|endoftext|>" for text in texts))
    first, second = (bpe_merges(corpus, 600, engine) for engine in ENGINES)
    assert len(first) == 600 - 257
    assert first == second


@pytest.mark.parametrize("engine", ENGINES)
def test_a_strangers_regular_expression_is_not_run(trained: Path, engine: str) -> None:
    content = read_tokenizer_json(trained / "tokenizer.json").tokenizer_json(special_in_text=False)
    content["pre_tokenizer"] = split("(a+)+$")
    with pytest.raises(ValueError, match=r"\w"):
        bpe_encoder(content, engine)


def test_without_the_first_the_second_is_taken(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("the other text")
    code = (
        "import sys; sys.modules['gigatoken'] = None\n"
        "from gptbridge.data.prepare import prepare\n"
        "from gptbridge.data.tokenizers.training import train_tokenizer\n"
        "from pathlib import Path\n"
        "text, tokenizer, output = sys.argv[1:]\n"
        "prepare([text], tokenizer, output)\n"
        "train_tokenizer([text], 259, Path(output + '-trained'))\n"
        "assert 'tokenizers' in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in.txt"), str(trained), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.bin").stat().st_size > 0
