"""Mutations of valid files, and random pickles of known opcodes: data that fits together, or BadInput."""

from __future__ import annotations

import pickle
import random
import struct
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptbridge.errors import BadInput
from gptbridge.weights.formats import WRITERS, open_weights
from gptbridge.weights.formats.pickles.globals import GLOBALS
from tests.weights.formats.conftest import ONE_FILE, WRITABLE, entries_of, make_array, read_all
from tests.weights.formats.containers import legacy, tensor_pickle, torch_zip

EXAMPLES = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
INTERESTING = [b"\x00", b"\xff", b"\x7f", b"\x80", b".", b"\xff" * 4, b"\xff" * 8, b"\x00" * 8, b"{", b"\n"]


@cache
def valid_file(kind: str) -> bytes:
    """A small file with several types and shapes."""
    arrays = {
        f"h.{n}.{dtype}": (dtype, make_array(dtype, shape))
        for n, (dtype, shape) in enumerate(
            zip(WRITABLE[kind][:6], [(2, 3), (), (0, 2), (4,), (400,), (1, 2, 3)], strict=True)
        )
    }
    with tempfile.TemporaryDirectory() as folder:
        WRITERS[kind](Path(folder, "weights"), entries_of(arrays))
        return Path(folder, "weights").read_bytes()


def open_or_refuse(content: bytes) -> bool:
    """Return whether the file opens; anything but success or BadInput fails the test."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            with open_weights(file.name) as weights:
                read_all(weights)
        except BadInput as refusal:
            problem = str(refusal)
        else:
            return True
    assert problem.isprintable()
    return False


@st.composite
def mutations(draw: st.DrawFn, valid: bytes) -> bytes:
    """Up to five edits: overwrite, insert, delete, repeat or cut, anywhere."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        stop = min(start + draw(st.integers(0, 16)), len(content))
        piece = draw(st.binary(max_size=8) | st.sampled_from(INTERESTING))
        edit = draw(st.sampled_from(["overwrite", "insert", "delete", "repeat", "cut"]))
        match edit:
            case "overwrite":
                content[start : start + len(piece)] = piece
            case "insert":
                content[start:start] = piece
            case "delete":
                del content[start:stop]
            case "repeat":
                content[start:start] = content[start:stop]
            case "cut":
                del content[max(start, len(content) // 2) :]
    return bytes(content)


@pytest.mark.parametrize("kind", ONE_FILE)
def test_mutated_files(kind: str) -> None:
    @EXAMPLES
    @given(mutations(valid_file(kind)))
    def check(content: bytes) -> None:
        open_or_refuse(content)

    assert open_or_refuse(valid_file(kind))
    check()


@pytest.mark.parametrize("kind", ONE_FILE)
def test_every_byte_flipped(kind: str) -> None:
    """No single wrong byte in the structure gives anything but a refusal or tensors of the right size."""
    valid = valid_file(kind)
    generator = random.Random(0)
    for position in range(0, len(valid), max(1, len(valid) // 300)):
        content = bytearray(valid)
        content[position] ^= 1 << generator.randrange(8)
        open_or_refuse(bytes(content))


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


GLOBAL_ATOMS = [f"c{module}\n{name}\n".encode() for module, name in GLOBALS]
STACK_ATOMS = [bytes([opcode]) for opcode in b"N\x88\x89)}]\x8f(Q01 2tR\x81baesu\x85\x86\x87\x90\x91\x94"]
VALUES: list[object] = [0, 1, 4, -1, 300, 1 << 40, 1.5, "f4", "storage", "0", "cpu", "latin1", "<", "data"]
VALUES += [(), (2, 3), (4,), (3, 1), [], {}, "O8", b"b", {"conj": True}]
VALUE_ATOMS = [
    *(_pickled(value) for value in VALUES),
    b"C\x18" + bytes(24),
    b"B\x60\x09\x00\x00" + bytes(2400),
    b"X\x60\x09\x00\x00" + b"\xc3\xa9" * 1200,
    b"h\x00",
    b"q\x00",
    b"h\x01",
    b"q\x01",
    struct.pack("<BQ", 0x95, 1),
]
# Whole calls that fit, so that random sequences get further than their first opcode.
CALL_ATOMS = [
    tensor_pickle()[2:-1],
    b"cnumpy\ndtype\n(" + _pickled("f4") + b"\x89\x88tR(K\x03" + _pickled("<") + b"NNNK\x00K\x00K\x00tb",
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR",
    b"ccollections\nOrderedDict\n)R",
    b"cargparse\nNamespace\n)\x81}b",
    b"(" + _pickled("storage") + b"ctorch\nFloatStorage\n" + _pickled("0") + _pickled("cpu") + b"K\x0ctQ",
]
ATOMS = st.lists(
    st.sampled_from(CALL_ATOMS) | st.sampled_from(VALUE_ATOMS) | st.sampled_from(STACK_ATOMS)
    | st.sampled_from(GLOBAL_ATOMS),
    max_size=24,
)  # fmt: skip


@settings(parent=EXAMPLES, max_examples=300)
@given(ATOMS, st.sampled_from(["plain", "zip", "legacy"]), st.booleans())
def test_random_pickles(atoms: Sequence[bytes], container: str, grouped: bool) -> None:
    body = b"".join(atoms)
    content = b"\x80\x02" + (b"(" + body + b"t." if grouped else body + b".")
    match container:
        case "zip":
            content = torch_zip(content, {"0": bytes(48)})
        case "legacy":
            content = legacy(content, {"0": (12, bytes(48))})
    open_or_refuse(content)


def test_random_pickles_can_succeed() -> None:
    body = b"\x80\x02(" + b"".join(CALL_ATOMS[:2]) + b"t."
    assert open_or_refuse(torch_zip(body, {"0": bytes(48)}))
    assert open_or_refuse(legacy(body, {"0": (12, bytes(48))}))
