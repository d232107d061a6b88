"""manifest.json: size and sha256 of every other file of a checkpoint, written last."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptbridge.errors import BadInput, printable
from gptbridge.files import read_json, require_regular_file, write_json
from gptbridge.weights.conversion.companions import TOKENIZER_FILES

MANIFEST_FILE = "manifest.json"

Entry = dict[str, Any]

# Begin the names of what is read of a checkpoint beside its tokenizer; an adapter is the user's to lay there.
_READ = ("config.", "state.", "model.safetensors", "model-", "optimizer")


def write_manifest(folder: Path, known: Mapping[str, Entry] | None = None) -> None:
    """Push every file of `folder` to the disk, then list them all; those in `known` need no reading."""
    files = {path.name: (known or {}).get(path.name) or entry_of(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST_FILE, {"version": 1, "files": files})


def entry_of(path: Path) -> Entry:
    """Push a file to the disk; return what the manifest says of it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def verify(folder: Path) -> None:
    """Raise BadInput naming the first file of `folder` that its manifest leaves out or has otherwise."""
    manifest = folder / MANIFEST_FILE
    files = read_json(manifest).get("files")
    if not isinstance(files, dict) or not files:
        raise BadInput("lists no files", where=manifest)
    for path in sorted(folder.iterdir()):
        is_read = path.name.startswith(_READ) or path.name in TOKENIZER_FILES
        if is_read and path.name not in files:
            raise BadInput(f"is not in {MANIFEST_FILE}, so nothing vouches for it", where=path)
    facts = {name: _facts(manifest, name, entry) for name, entry in files.items()}
    # Sizes first: a file cut short is found without reading the others.
    for name, (size, _) in facts.items():
        found = require_regular_file(folder / name)
        if found != size:
            raise BadInput(f"damaged: {found} bytes, {size} were written", where=folder / name)
    for name, (_, sha256) in facts.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise BadInput("damaged: its bytes are not those that were written", where=folder / name)


def _facts(manifest: Path, name: str, entry: object) -> tuple[int, str]:
    size, sha256 = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if Path(name).name != name or not isinstance(size, int) or not isinstance(sha256, str):
        raise BadInput(f"the entry {printable(name)!r} is malformed", where=manifest)
    return size, sha256
