"""The README.md of an artefact: what the model is, what was trained on what, how to run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from gptbridge.checkpoint.state import TrainingState
from gptbridge.errors import printable
from gptbridge.exporting.draft import Draft
from gptbridge.exporting.formats import Format
from gptbridge.weights.conversion.facts import digest
from gptbridge.weights.conversion.verdict import Verdict

_TAGS = "---\ntags:\n- gpt2\n- gptbridge\npipeline_tag: text-generation\n---\n"


def model_card(name: str, form: Format, draft: Draft, verdict: Verdict | None) -> str:
    """Return the card of an artefact in the format `name`. It names no folder of this machine."""
    sections = {
        "What it is": _model(draft),
        "What was trained on what": _training(draft),
        "This artefact": _artefact(name, form, draft, verdict),
    }
    text = "".join(
        f"\n## {title}\n\n" + "".join(f"- {line}\n" for line in lines) for title, lines in sections.items()
    )
    return f"{_TAGS}\n# {draft.title}\n{text}\n## How to run it\n\n{_running(form)}"


def _model(draft: Draft) -> Iterator[str]:
    model = draft.model
    yield (
        f"a pre-LayerNorm GPT with learned positions: {model.num_layers} layers of {model.hidden_size}, "
        f"{model.num_attention_heads} heads, feed-forward {model.ffn_size} ({model.activation}), "
        f"{model.vocab_size} tokens, {model.max_position_embeddings} positions"
    )
    tied = "is the token embedding" if model.tie_word_embeddings else "has weights of its own"
    yield f"LayerNorm epsilon {model.layernorm_epsilon:g}; the output projection {tied}"
    if draft.tokenizer is not None:
        yield f"tokenizer: {draft.tokenizer.vocab_size} tokens, sha256 {draft.tokenizer.identity}"


def _training(draft: Draft) -> Iterator[str]:
    opened = draft.opened
    if draft.state is None:
        yield (
            f"not known: the checkpoint ({opened.dialect}, {opened.variant}) says nothing about its training"
        )
    else:
        yield from _run(draft.state)
    if draft.adapted:
        yield "a LoRA adapter was added to the weights"
    yield f"digest of the weights, as gptbridge inspect shows it: sha256:{digest(opened)}"


def _run(state: TrainingState) -> Iterator[str]:
    spec = state.spec
    names = ", ".join(PurePath(path).name for path in spec.data.paths)
    source = names or "the Python standard library's source"
    yield f"{state.step} steps, {state.tokens:,} tokens, on {printable(source)}"
    yield f"identity of the data and its samples: {state.data.digest}"
    yield (
        f"{spec.optimizer.name}, learning rate up to {spec.schedule.max_lr:g}, "
        f"{spec.training.global_batch_size} samples of {spec.training.seq_length} tokens a step, "
        f"computed in {spec.precision.compute} by {state.backend}"
    )
    if state.origin is None:
        yield f"from initial weights that were drawn, seed {spec.training.seed}"
    else:
        yield (
            f"from weights of {PurePath(state.origin.path).name} ({state.origin.dialect}), "
            f"digest {state.origin.digest}"
        )


def _artefact(name: str, form: Format, draft: Draft, verdict: Verdict | None) -> Iterator[str]:
    yield f"{name}, {form.title}, matrices in {draft.dtype}"
    yield (
        "not tested after it was written"
        if verdict is None
        else f"tested after it was written, without gptbridge, against the checkpoint: {verdict}"
    )
    for caution in form.cautions(draft):
        yield f"**{caution}**"


def _running(form: Format) -> str:
    packages = " ".join(("numpy", *form.running, "tokenizers"))
    return (
        f"It takes {packages}; gptbridge it does not take.\n\n"
        '```sh\npython infer.py --prompt "def " --new 40\n```\n\n'
        "`model.py` is what runs it: `Model(folder).feed(tokens)` gives logits and a state to go on from.\n"
    )
