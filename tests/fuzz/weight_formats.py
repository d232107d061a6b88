"""Coverage-guided fuzzing of every weight reader: `weight_formats.py CORPUS [-max_total_time=SECONDS]`.

Needs atheris. CORPUS is a folder that is filled with small valid files of each format when it is empty.
A crash is any exception but BadInput, or tensors whose sizes do not fit what the file said.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped,unused-ignore]

with atheris.instrument_imports(include=["gptbridge"]):
    from gptbridge.errors import BadInput
    from gptbridge.weights.formats import open_weights
    from gptbridge.weights.formats.dcp_metadata import Place, Saved
    from gptbridge.weights.formats.dcp_writer import encode_metadata

from tests.weights.formats.conftest import ONE_FILE, read_all
from tests.weights.formats.containers import legacy, tensor_pickle, torch_zip
from tests.weights.formats.test_fuzz import valid_file


def open_or_refuse(content: bytes) -> None:
    """Open one file, without the disk."""
    fd = os.memfd_create("input")
    try:
        os.write(fd, content)
        with open_weights(f"/proc/self/fd/{fd}") as weights:
            read_all(weights)
    except BadInput:
        pass
    finally:
        os.close(fd)


def fill(corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    if any(corpus.iterdir()):
        return
    for kind in ONE_FILE:
        (corpus / kind).write_bytes(valid_file(kind))
    part = Place((0, 0), (2, 3), "__0_0.distcp", 0, 9)
    (corpus / "dcp").write_bytes(encode_metadata({("w",): Saved("float32", (2, 3), (part,))}))
    (corpus / "torch-view").write_bytes(torch_zip(tensor_pickle(strides=(1, 3)), {"0": bytes(48)}))
    (corpus / "legacy-view").write_bytes(legacy(tensor_pickle(strides=(1, 3)), {"0": (12, bytes(48))}))


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
    atheris.Setup(sys.argv, open_or_refuse)
    atheris.Fuzz()
