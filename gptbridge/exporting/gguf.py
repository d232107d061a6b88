"""One file for llama.cpp: the weights as its GPT-2 names them, and the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptbridge.exporting.draft import Draft
from gptbridge.weights.architecture import parameters, sizes
from gptbridge.weights.layouts.arrays import stored_array
from gptbridge.weights.layouts.rules import Layout, NativeTensor, rows, rules

LAYOUT = Layout(
    "gguf",
    "gpt2",
    rules(
        top=rows(
            {
                "wte.weight": "token_embd.weight",
                "wpe.weight": "position_embd.weight",
                "ln_f.*": "output_norm.*",
                "lm_head.weight": "output.weight",
            }
        ),
        block=rows(
            {
                "ln_1.*": "attn_norm.*",
                "attn.qkv.*": "attn_qkv.*",
                "attn.c_proj.*": "attn_output.*",
                "ln_2.*": "ffn_norm.*",
                "mlp.c_fc.*": "ffn_up.*",
                "mlp.c_proj.*": "ffn_down.*",
            },
            out_in=True,
        ),
        blocks="blk.{}.",
    ),
)
_TYPES = {"float32": "F32", "float16": "F16", "q8_0": "Q8_0"}  # in the library's words
_FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
_ALIKE = 32  # numbers of a row that share a scale in q8_0
_NO_MERGE = "Ā Ā"  # two bytes that make no token: the library refuses an empty list


def write_gguf(draft: Draft, folder: Path) -> None:
    """Write model.gguf into `folder`, a tensor at a time."""
    import gguf

    writer = gguf.GGUFWriter(folder / "model.gguf", "gpt2")
    _describe(writer, draft)
    _add_vocabulary(writer, draft)
    whole = sizes(draft.model)
    natives = _natives(draft)
    kinds = [gguf.GGMLQuantizationType[_TYPES[_stored_as(each, whole, draft.dtype)]] for each in natives]
    for native, kind in zip(natives, kinds, strict=True):
        shape = native.axes.shape(whole)
        numbers, nbytes = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(native.name, shape, None, math.prod(shape) // numbers * nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for native, kind in zip(natives, kinds, strict=True):
        read = draft.reading("float16" if kind.name == "F16" else "float32")
        writer.write_tensor_data(gguf.quants.quantize(stored_array(native, whole, read), kind))
    writer.close()


def stored_otherwise(draft: Draft) -> str | None:
    """Return how many matrices cannot be of the element type that is asked for, in words; None for none."""
    kinds = [_stored_as(each, sizes(draft.model), draft.dtype) for each in _natives(draft)]
    if draft.dtype != "q8_0" or "float16" not in kinds:
        return None
    count, of = kinds.count("float16"), kinds.count("float16") + kinds.count("q8_0")
    return f"{count} of {of} matrices are in float16: q8_0 has rows of a multiple of {_ALIKE} numbers"


def _natives(draft: Draft) -> list[NativeTensor]:
    names = [parameter.name for parameter in parameters(draft.model)]
    return list(LAYOUT.natives(names, draft.model.num_layers))


def _stored_as(native: NativeTensor, whole: Mapping[str, int], dtype: str) -> str:
    """Return the element type of a tensor: norms, biases and positions stay float32."""
    shape = native.axes.shape(whole)
    if len(shape) == 1 or native.name.startswith("position"):
        return "float32"
    return "float16" if dtype == "q8_0" and shape[-1] % _ALIKE else dtype


def _describe(writer: Any, draft: Draft) -> None:
    import gguf

    model = draft.model
    writer.add_name(draft.title)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[draft.dtype]])
    writer.add_block_count(model.num_layers)
    writer.add_context_length(model.max_position_embeddings)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.ffn_size)
    writer.add_head_count(model.num_attention_heads)
    writer.add_layer_norm_eps(model.layernorm_epsilon)
    writer.add_vocab_size(model.vocab_size)


def _add_vocabulary(writer: Any, draft: Draft) -> None:
    """Write the tokens: rows of the embedding that no token has become unused ones."""
    import gguf

    content = draft.bpe["model"]
    special = {token["id"] for token in draft.bpe["added_tokens"]}
    token_of = {number: token for token, number in content["vocab"].items()}
    rows = range(draft.model.vocab_size)
    kind = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token_of.get(row, f"[PAD{row}]") for row in rows])
    writer.add_token_types(
        [kind.CONTROL if row in special else kind.NORMAL if row in token_of else kind.UNUSED for row in rows]
    )
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]] or [_NO_MERGE])
    writer.add_bos_token_id(draft.end_of_text)  # without these llama.cpp takes token 11
    writer.add_eos_token_id(draft.end_of_text)
    writer.add_add_bos_token(False)
