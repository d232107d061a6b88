"""What the model is: sizes and named choices, nothing about how it is trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from gptbridge_specs.base import Part
from gptbridge_specs.parallel import divisors, next_to

Activation = Literal["gelu_tanh", "gelu_erf", "quick_gelu"]


class ModelSpec(Part):
    """A pre-LayerNorm GPT with learned positions, as GPT-2 and the four seed systems have it."""

    vocab_size: int = Field(257, ge=1, le=2**24, description="Rows of the token embedding.")
    hidden_size: int = Field(256, ge=1, le=2**17, description="Width of the residual stream.")
    num_layers: int = Field(4, ge=1, le=4096, description="Transformer blocks.")
    num_attention_heads: int = Field(4, ge=1, le=4096, description="Heads; they divide hidden_size.")
    ffn_hidden_size: int | None = Field(
        None, ge=1, le=2**20, description="Width of the feed-forward layer; 4 x hidden_size when absent."
    )
    max_position_embeddings: int = Field(
        256, ge=1, le=2**24, description="Rows of the position embedding: the longest context, in tokens."
    )
    activation: Activation = Field(
        "gelu_tanh",
        description="gelu_tanh (GPT-2), gelu_erf (exact) or quick_gelu: x*sigmoid(1.702x).",
    )
    layernorm_epsilon: float = Field(1e-5, gt=0, lt=1, description="Added to the variance in LayerNorm.")
    hidden_dropout_prob: float = Field(
        0.1, ge=0, lt=1, description="Dropout after the embeddings and at the end of both residual branches."
    )
    attention_probs_dropout_prob: float = Field(
        0.1, ge=0, lt=1, description="Dropout on the attention probabilities."
    )
    initializer_range: float = Field(
        0.02,
        gt=0,
        le=10,
        description="Standard deviation of initial weights; residual projections / sqrt(2L).",
    )
    tie_word_embeddings: bool = Field(True, description="Use the token embedding as the output projection.")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            near = next_to(self.num_attention_heads, divisors(self.hidden_size))
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide "
                f"hidden_size={self.hidden_size}: {near}"
            )
        return self

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward layer."""
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads
