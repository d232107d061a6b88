"""What a run is allowed to do and its user has probably not meant: said as a warning."""

from __future__ import annotations

from gptbridge_specs import RunSpec


def advise(spec: RunSpec, *, tokenizer_vocab_size: int, done: int) -> list[str]:
    """Return what to warn of before a run of `spec` goes on after `done` steps."""
    warnings = []
    unused = spec.model.vocab_size - tokenizer_vocab_size
    if unused > tokenizer_vocab_size:  # padding to a round number is far less
        warnings.append(
            f"model.vocab_size is {spec.model.vocab_size:,}, the tokenizer has {tokenizer_vocab_size:,} "
            f"tokens: {unused:,} rows of the embedding are never used; "
            f"-o model.vocab_size={tokenizer_vocab_size} leaves them out"
        )
    if done and done == spec.training.max_steps:
        warnings.append(f"step {done} is the last of this run; -o training.max_steps=N goes on to step N")
    stop = spec.training.stop_after_steps
    if done and stop and stop <= done < spec.training.max_steps:
        warnings.append(f"training.stop_after_steps={stop} is over at step {done}: there is nothing to do")
    return warnings
