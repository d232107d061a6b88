"""Open a checkpoint: find its files, know the dialect, agree on the model, put the weights together."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from gptbridge.errors import BadInput
from gptbridge.weights.architecture import sizes as letter_sizes
from gptbridge.weights.canonical.assembly import assemble, stored_sizes
from gptbridge.weights.canonical.lora import HEAD, labels_of, split_lora
from gptbridge.weights.dialects.adapters import adapter_alone, base_of, read_adapter
from gptbridge.weights.formats import open_weights
from gptbridge.weights.formats.source import allow_open_files
from gptbridge.weights.opening.agreement import agreed_model, assumed, overruled
from gptbridge.weights.opening.configuration import find_configuration
from gptbridge.weights.opening.discovery import find_files
from gptbridge.weights.opening.heads import check_labels, drop_tied_head, without_head
from gptbridge.weights.opening.hints import Hints
from gptbridge.weights.opening.identifying import identify
from gptbridge.weights.opening.opened import Opened

_NO_HINTS = Hints()


def open_checkpoint(path: Path, hints: Hints = _NO_HINTS, *, verify: bool = True) -> Opened:
    """Open the checkpoint at `path`, a file or a folder of any dialect. Closing it is the caller's.

    An adapter in a folder of its own is opened with the base model that it names, or that a hint does.
    The CRCs that files declare are checked unless `verify` is False, and the caller does it.
    BadInput for anything that is missing, left over or contradictory; UsageError for what neither a file
    nor a hint says.
    """
    with ExitStack() as unless_opened:
        stack = unless_opened.enter_context(ExitStack())
        try:
            folder = adapter_alone(path)
            beside = None if folder is None else _open_beside(folder, stack, hints, verify)
            opened = beside or _open(path, stack, hints, verify)
        except OSError as error:
            raise BadInput(f"cannot be read: {error.strerror}", where=path) from error
        unless_opened.pop_all()
    return opened


def _open_beside(folder: Path, stack: ExitStack, hints: Hints, verify: bool) -> Opened:
    """Open the adapter in `folder` with the base model that it or a hint names."""
    base = hints.base or base_of(folder)
    if adapter_alone(base):
        raise BadInput("its base model is an adapter", where=folder, hint="Merge that: convert --merge-lora")
    opened = _open(base, stack, hints, verify)
    adapter = read_adapter(folder, opened.model, stack, alpha=hints.lora_alpha)
    if opened.adapter is not None or adapter is None:
        problem = "its base model has an adapter of its own"
        raise BadInput(problem, where=folder, hint="Merge that: convert --merge-lora")
    weights, sizes = opened.weights, {**opened.sizes, "r": adapter.rank}
    if adapter.head is not None:
        weights = {**weights, HEAD: adapter.head}
        sizes["c"] = labels_of(adapter.head)
    return replace(
        opened,
        path=folder,
        adapter=adapter,
        base=base,
        weights=weights,
        sizes=sizes,
        language_head=opened.language_head and adapter.head is None,
    )


def _open(path: Path, stack: ExitStack, hints: Hints, verify: bool) -> Opened:
    found = find_files(path)
    allow_open_files(len(found.files))
    files = [stack.enter_context(open_weights(file, verify=verify)) for file in found.files]
    what = identify(found, files, dialect=hints.dialect, strategy=hints.strategy, where=path)
    dialect, match, stages = what.dialect, what.match, what.stages
    configured, config_file = find_configuration(found.root, files[0], dialect)
    stored = stored_sizes(match, stages, path)
    model = agreed_model(what, stored, configured, hints.model, path)
    sizes = {**letter_sizes(model), **{x: stored[x] for x in "vcr" if x in stored}}
    alpha = hints.lora_alpha if hints.lora_alpha is not None else configured.lora_alpha
    weights, adapter = split_lora(assemble(match, stages, sizes), sizes["r"], alpha, path)
    if adapter is None and dialect.adapters is not None:
        adapter = dialect.adapters.read(found.root, model, stack, alpha=hints.lora_alpha)
        sizes["r"] = adapter.rank if adapter is not None else sizes["r"]
    language_head = "lm_head.weight" in weights or "score.weight" not in weights
    headless = tuple(without_head(weights, configured))
    tied = drop_tied_head(weights, sizes, configured, path)
    check_labels(weights, sizes, configured, path)
    return Opened(
        path=path,
        dialect=dialect.name,
        variant=match.variant,
        model=model.model_copy(update={"tie_word_embeddings": tied}),
        sizes=sizes,
        weights=weights,
        adapter=adapter,
        language_head=language_head,
        stages=stages,
        dropped=match.dropped,
        config_file=config_file,
        tokens={key: token for key, token in configured.tokens.items() if token < model.vocab_size},
        assumed=tuple(assumed(what, model, configured if config_file else None, hints.model)),
        warnings=(*what.warnings, *headless, *(overruled(configured, hints.model) if config_file else ())),
        _open_files=stack,
        hints=hints,
    )
