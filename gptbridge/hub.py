"""Checkpoints by name: `gpt2`, `hf:ORG/NAME`, `modelscope:ORG/NAME`, fetched into the hubs' own caches."""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from gptbridge.errors import BadInput, UsageError, from_checkout, printable

# What needs no prefix.
_KNOWN = {
    "gpt2": "hf:openai-community/gpt2",
    "gpt2-medium": "hf:openai-community/gpt2-medium",
    "gpt2-large": "hf:openai-community/gpt2-large",
    "gpt2-xl": "hf:openai-community/gpt2-xl",
    "distilgpt2": "hf:distilbert/distilgpt2",
}
_PART = r"(?!\S*(?:\.\.|--))(\w(?:[\w.-]{0,94}\w)?)"
_NAME = re.compile(rf"(hf|modelscope):{_PART}/{_PART}(?:@(\w[\w./-]*))?")
# A repository has the same weights in several forms: the first of these, and what describes them.
_WEIGHTS = (("*.safetensors", "*.safetensors.index.json"), ("*.bin", "*.bin.index.json"), ("*.pt", "*.pth"),
            ("*.pdparams",), ("*.ckpt",))  # fmt: skip
_BESIDE = ("*.json", "*.txt", "*.model", "*.vocab", "*.yaml")
_OTHERS = ("onnx/*", "*.onnx", "openvino*", "flax_*", "tf_*", "rust_*", "*coreml*", "training_args.bin",
           "optimizer*", "scheduler*", "*.h5", "*.msgpack")  # fmt: skip
_CONFIGS = ("config.json", "model_config.json", "model.yaml", "configuration.json")
_TIMEOUT = 20  # seconds that a hub may be silent
_BLOCK = 1 << 20


def fetched(path: Path) -> Path:
    """Return `path`, or the folder of the checkpoint that it names on a hub, which is fetched if need be.

    What exists here is no name. BadInput where a hub has no such thing or cannot be reached and the cache
    lacks it; UsageError where the package that it takes is not installed.
    """
    name = str(path)
    if os.path.lexists(path):
        return path
    found = _NAME.fullmatch(_KNOWN.get(name, name))
    if found is None:
        if name.startswith(("hf:", "modelscope:")):
            raise UsageError(
                "no such name", where=name, allowed="hf:ORG/NAME, modelscope:ORG/NAME, @REVISION after it"
            )
        return path
    hub, owner, model, revision = found.groups()
    return _HUBS[hub](name, f"{owner}/{model}", revision)


def fetching_name(name: str) -> str | None:
    """Return what fetches the model that others call `name`, as gpt2 or ORG/NAME; None if it can be none."""
    return name if name in _KNOWN else f"hf:{name}" if re.fullmatch(f"{_PART}/{_PART}", name) else None


def chosen(files: Iterable[str]) -> list[str]:
    """Return which files make a checkpoint: one form of the weights, and what describes it."""
    kept = [file for file in files if not _any(file, _OTHERS) and ".." not in PurePosixPath(file).parts]
    kept = [file for file in kept if not file.startswith("/")]
    weights = next((form for form in _WEIGHTS if any(_any(file, form) for file in kept)), ())
    indices = [pattern for form in _WEIGHTS for pattern in form if pattern.endswith(".index.json")]
    return [file for file in kept if _any(file, weights) or (_any(file, _BESIDE) and not _any(file, indices))]


def _any(file: str, patterns: Sequence[str]) -> bool:
    return any(
        fnmatchcase(file, pattern) or fnmatchcase(PurePosixPath(file).name, pattern) for pattern in patterns
    )


def _hugging_face(name: str, repository: str, revision: str | None) -> Path:
    """Return the folder of a snapshot in Hugging Face's cache, of the network's newest where there is one."""
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise UsageError(
            "a name on Hugging Face takes huggingface_hub, which is not installed",
            where=name,
            hint=from_checkout("hub"),
        ) from error
    try:
        siblings = hub.HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT).siblings or ()
        files = chosen(sibling.rfilename for sibling in siblings)
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=files))
    except Exception as error:  # of whichever HTTP library it uses: no network, or told to use none
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
        if status < 500:
            problem = f"Hugging Face refuses it ({status}): no such model, or not for everyone"
            raise BadInput(problem, where=name, hint="Log in where it is yours: hf auth login") from error
        held = (hub.try_to_load_from_cache(repository, file, revision=revision) for file in _CONFIGS)
        if found := next((file for file in held if isinstance(file, str)), None):
            return Path(found).parent  # the opener sees to it that its weights are all there
        _unreachable(name, "Hugging Face", "HF_HOME", error)


def _modelscope(name: str, repository: str, revision: str | None) -> Path:
    """Return the model's folder in ModelScope's cache, each file as the network has it, if it answers."""
    root = Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope" / "hub")
    of_revision = "" if revision in (None, "master") else f"@{revision.replace('/', '___')}"
    place = repository.replace(".", "___") + of_revision
    folder, older = root / "models" / place, root / place
    folder = older if older.is_dir() and not folder.is_dir() else folder
    domain = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    base = f"{domain if '://' in domain else f'https://{domain}'}/api/v1/models/{repository}/repo"
    query = {"Revision": revision or "master"}
    try:
        listed = _listed(base, query)
    except (OSError, ValueError) as error:
        if getattr(error, "code", 0) in (401, 403, 404):
            raise BadInput(f"ModelScope refuses it ({error})", where=name) from error
        if folder.is_dir():
            return folder
        _unreachable(name, "ModelScope", "MODELSCOPE_CACHE", error)
    try:
        for file in chosen(listed):
            _fetch(
                f"{base}?{urllib.parse.urlencode({**query, 'FilePath': file})}", folder / file, listed[file]
            )
    except OSError as error:
        raise BadInput(
            f"could not be fetched: {error}", where=name, hint="Try again: what is there is kept"
        ) from error
    return folder


def _listed(base: str, query: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Return the files of a repository by their names."""
    address = f"{base}/files?{urllib.parse.urlencode({**query, 'Recursive': 'true'})}"
    with _opened(address) as answer:
        content = json.loads(answer.read(_BLOCK * 16))
    try:
        files = content["Data"]["Files"]
        return {str(file["Path"]): file for file in files if file.get("Type") != "tree"}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"an answer that lists no files: {printable(content)}") from error


def _fetch(address: str, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a file whole or not at all; one that is there already stays. OSError for another content."""
    size, sha256 = facts.get("Size"), facts.get("Sha256")
    if path.is_file() and path.stat().st_size == size and sha256 in (None, "", _digest(path)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    digest, count = hashlib.sha256(), 0
    with _opened(address) as answer, partial.open("wb") as file:
        while block := answer.read(_BLOCK):
            digest.update(block)
            count += file.write(block)
    if size not in (None, count) or (sha256 and sha256 != digest.hexdigest()):
        partial.unlink()
        raise OSError(f"{path.name} came with {count} bytes, and is not what was announced")
    partial.replace(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(address: str) -> Any:
    from urllib.request import urlopen  # 3 MB of what a command that opens a folder has no use for

    return urlopen(address, timeout=_TIMEOUT)


def _unreachable(name: str, hub: str, variable: str, error: Exception) -> NoReturn:
    reason = printable(" ".join(str(error).split()))
    raise BadInput(
        f"is not in the cache, and {hub} cannot be reached: {reason}",
        where=name,
        hint=f"Fetch it where there is a network and name its folder, or copy the cache and set {variable}",
    ) from error


_HUBS: dict[str, Callable[[str, str, str | None], Path]] = {"hf": _hugging_face, "modelscope": _modelscope}
