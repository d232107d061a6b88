"""MindFormers GPT-2: attention inputs (out, in) and apart, every other linear weight (in, out).

LoRA deltas stand beside the weights they change: mindpet's `mindpet_delta_lora_a` is (rank, in),
`mindpet_delta_lora_b` (out, rank).
"""

from __future__ import annotations

from gptbridge.weights.layouts.rules import Layout, rules

_QKV = ("attention.dense1", "attention.dense2", "attention.dense3")

MINDSPORE = (
    Layout(
        "mindspore",
        "GPT2LMHeadModel",
        rules(
            top={
                "wte.weight": ("backbone.embedding.word_embedding.embedding_table", "v i"),
                "wpe.weight": ("backbone.embedding.position_embedding.embedding_table", "t i"),
                "ln_f.weight": ("backbone.layernorm.gamma", "i"),
                "ln_f.bias": ("backbone.layernorm.beta", "i"),
                "score.weight": ("score.weight", "c i"),
            },
            block={
                "ln_1.weight": ("layernorm1.gamma", "i"),
                "ln_1.bias": ("layernorm1.beta", "i"),
                "attn.c_attn.weight": (tuple(f"{name}.weight" for name in _QKV), "(n d) i"),
                "attn.c_attn.bias": (tuple(f"{name}.bias" for name in _QKV), "(n d)"),
                "attn.c_attn.lora_a": (tuple(f"{name}.mindpet_delta_lora_a" for name in _QKV), "r i"),
                "attn.c_attn.lora_b": (tuple(f"{name}.mindpet_delta_lora_b" for name in _QKV), "(n d) r"),
                "attn.c_proj.weight": ("attention.projection.weight", "(n d) o"),
                "attn.c_proj.bias": ("attention.projection.bias", "o"),
                "ln_2.weight": ("layernorm2.gamma", "i"),
                "ln_2.bias": ("layernorm2.beta", "i"),
                "mlp.c_fc.weight": ("output.mapping.weight", "i f"),
                "mlp.c_fc.bias": ("output.mapping.bias", "f"),
                "mlp.c_proj.weight": ("output.projection.weight", "f o"),
                "mlp.c_proj.bias": ("output.projection.bias", "o"),
            },
            blocks="backbone.blocks.{}.",
        ),
        dropped=(
            r"(backbone\.blocks\.\d+\.)?attention\.(beta|masked_beta)",
            r"(adam_[mv]|moment[12]|accu_grads)\..*",  # a training checkpoint's optimizer
            r"(global_step|learning_rate|scale_sense|epoch_num|step_num|loss_scale|current_iterator_step)",
            r"(beta[12]_power|last_overflow_iterator_step)",
        ),
        # The head is the first stage's table once more. Each tensor rank has it whole (vocab_emb_dp).
        repeated_in_last_stage=(("wte.weight", "backbone.embedding.word_embedding.embedding_table"),),
        cut="nf",
    ),
)
