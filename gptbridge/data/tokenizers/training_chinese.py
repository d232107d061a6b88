"""Training Chinese vocabularies on jieba's words: ModelScope's BPE and CPM's SentencePiece."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson

from gptbridge.data.tokenizers.interface import END_OF_TEXT
from gptbridge.data.tokenizers.jieba_bpe import SEPARATOR, JiebaBpeTokenizer
from gptbridge.data.tokenizers.jieba_words import JiebaWords
from gptbridge.data.tokenizers.optional import require
from gptbridge.data.tokenizers.sentencepiece import CpmTokenizer
from gptbridge.errors import UsageError

# ModelScope's vocabulary has these; <unk> stands for a character that is too rare to be a token.
_MODELSCOPE = ("<unk>", SEPARATOR, END_OF_TEXT)
# CPM's: <eod> has id 7, after <unk>, <s>, </s> and four that nothing uses.
_CPM = ("<cls>", "<sep>", "<pad>", "<mask>", "<eod>")
_CHARACTERS = 0.8  # of the vocabulary at most: the others are words


def train_jieba_bpe(texts: Iterable[str], vocab_size: int, folder: Path) -> JiebaBpeTokenizer:
    """Write a vocabulary as ModelScope's GPT-3 has it, trained on `texts`, into `folder`."""
    library = require("tokenizers", "ModelScope's tokenizer")
    tokenizer = library.Tokenizer(library.models.BPE(unk_token="<unk>"))
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_MODELSCOPE),
        initial_alphabet=["\n", " "],
        limit_alphabet=int(vocab_size * _CHARACTERS),
        show_progress=False,
    )
    tokenizer.decoder = library.decoders.Fuse()  # nothing stands between words
    tokenizer.train_from_iterator(_words(texts), trainer)
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer.to_str(pretty=True).encode())
    (folder / "tokenizer_config.json").write_bytes(
        orjson.dumps({"gptbridge_tokenizer": JiebaBpeTokenizer.kind})
    )
    return JiebaBpeTokenizer(folder / "tokenizer.json")


def train_cpm(texts: Iterable[str], vocab_size: int, folder: Path) -> CpmTokenizer:
    """Write a vocabulary as CPM has it, trained on `texts`, into `folder`."""
    library = require("sentencepiece", "a SentencePiece model")
    model = io.BytesIO()
    blocks = str.maketrans(" \n", "\u2582\u2583")
    sentences = (" ".join(w.translate(blocks) for w in words) for words in _sentences(texts))
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            vocab_size=vocab_size,
            control_symbols=list(_CPM),
            user_defined_symbols=["\u2582", "\u2583"],
            character_coverage=0.9995,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UsageError(
            f"no vocabulary of {vocab_size} for this text: {str(error).splitlines()[-1][:120]}",
            where="--vocab-size",
        ) from error
    folder.mkdir()
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps({"gptbridge_tokenizer": CpmTokenizer.kind}))
    return CpmTokenizer(path)


CHINESE: dict[str, Callable[[Iterable[str], int, Path], JiebaBpeTokenizer | CpmTokenizer]] = {
    JiebaBpeTokenizer.kind: train_jieba_bpe,
    CpmTokenizer.kind: train_cpm,
}


def _sentences(texts: Iterable[str]) -> Iterator[list[str]]:
    jieba = JiebaWords()
    for text in texts:
        yield list(jieba.cut(text))


def _words(texts: Iterable[str]) -> Iterator[str]:
    for words in _sentences(texts):
        yield from words
