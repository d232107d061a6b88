"""How text is continued, and how the four systems continue it by default."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gptbridge_specs.base import Part

# What each system does when nothing is said. None of them knows a window.
PRESETS: dict[str, dict[str, Any]] = {
    "paddlenlp": {"max_new_tokens": 20, "length_penalty": 0.0, "top_p_rule": "paddlenlp"},
    "fleetx": {
        "strategy": "sample",
        "max_new_tokens": 200,
        "min_new_tokens": 1,
        "top_k": 50,
        "top_p": 0.75,
        "top_p_rule": "paddlenlp",
    },
    "mindformers": {"max_new_tokens": 1024, "max_length": 1024, "top_k": 5},
    "modelscope": {"strategy": "sample", "max_new_tokens": 100, "top_p": 0.9},
}


class GenerationSpec(Part):
    """How text is continued."""

    max_new_tokens: int = Field(100, ge=1, description="Tokens generated at the most.")
    min_new_tokens: int = Field(0, ge=0, description="Before these no token ends a text.")
    max_length: int | None = Field(
        None, ge=1, description="Tokens of prompt and continuation at the most; absent: no such limit."
    )
    strategy: Literal["greedy", "sample", "beam"] = Field(
        "greedy", description="The likeliest token, a drawn one, or the likeliest text of a beam search."
    )
    num_return_sequences: int = Field(1, ge=1, description="Texts for each prompt; greedy has one.")
    temperature: float = Field(1.0, gt=0, description="Divides the logits before sampling.")
    top_k: int = Field(0, ge=0, description="Draw from the k likeliest tokens; ties are kept; 0: all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the likeliest tokens that reach this share.")
    top_p_rule: Literal["transformers", "paddlenlp"] = Field(
        "transformers", description="Shares after top_k: counted anew, or (paddlenlp) as they were before it."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Draw from tokens of at least this part of the likeliest one's share."
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        description="Makes every token of prompt and continuation less likely: divides a logit above 0, "
        "multiplies one below (beam: its log-probability).",
    )
    no_repeat_ngram: int = Field(
        0, ge=0, description="No run of so many tokens comes twice in prompt and continuation; 0: any may."
    )
    stop: tuple[str, ...] = Field((), description="Strings that end a text; it is cut before them.")
    stop_tokens: tuple[int, ...] = Field((), description="Tokens that end a text, as end-of-text does.")
    beams: int = Field(4, ge=1, description="beam: texts that are followed at once.")
    beam_groups: int = Field(1, ge=1, description="beam: groups that the beams are searched in, in turn.")
    diversity_penalty: float = Field(
        0.0,
        ge=0,
        description="beam: taken from a token's score for each beam of earlier groups that chose it.",
    )
    length_penalty: float = Field(
        1.0, description="beam: a text's score is divided by its new tokens to this power."
    )
    early_stopping: bool = Field(
        False, description="beam: end as soon as there are as many ended texts as beams."
    )
    seed: int = Field(1234, ge=0, lt=2**63, description="Seed of the draws.")
    window: int | None = Field(
        None,
        ge=1,
        description="Tokens that the model sees at the most; absent: the seq_length that it was trained at, "
        "where its checkpoint says it, else all its positions.",
    )
    long_prompts: Literal["window", "refuse"] = Field(
        "window", description="A prompt beyond the window: the model sees its end, or it is refused."
    )

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        """Take the name of a preset, or a section with a `preset`, for the preset's fields below its own."""
        if isinstance(values, str):
            values = {"preset": values}
        if not isinstance(values, dict) or "preset" not in values:
            return values
        name = values["preset"]
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; allowed: {', '.join(PRESETS)}")
        return {**PRESETS[name], **{key: value for key, value in values.items() if key != "preset"}}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_enough(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _a_stop_has_characters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty string would end every text at once")
        if any("\ud800" <= character <= "\udfff" for stop in value for character in stop):
            raise ValueError("is not valid Unicode text")
        return value

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}"
            )
        if self.strategy == "greedy" and self.num_return_sequences > 1:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences}: greedy has one text; "
                "strategy=sample or beam has more"
            )
        if self.strategy == "beam":
            self._check_beams()
        return self

    def _check_beams(self) -> None:
        if self.num_return_sequences > self.beams:
            raise ValueError(f"num_return_sequences={self.num_return_sequences} exceeds beams={self.beams}")
        if self.beams % self.beam_groups:
            raise ValueError(f"beam_groups={self.beam_groups} does not divide beams={self.beams}")
        if self.diversity_penalty and self.beam_groups == 1:
            raise ValueError(f"diversity_penalty={self.diversity_penalty}: it needs beam_groups above 1")
