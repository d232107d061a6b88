"""Pickles whose data grows, lies or disagrees: refused with the reason; their neighbours load."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge.weights.formats import open_weights
from gptbridge.weights.formats.torch_legacy import MAGIC_NUMBER, VERSION
from tests.weights.formats.conftest import Check, assert_opens
from tests.weights.formats.pickled import global_opcode, text


def binary_int(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def doubling(levels: int) -> bytes:
    """Lists of ten references to the one before: 10 ** levels places of the first."""
    body = b"]q\x00"
    for level in range(levels):
        body += b"](" + 10 * (b"h" + bytes([level])) + b"e" + b"q" + bytes([level + 1])
    return b"\x80\x02(" + body + b"t."


GLOBAL_DICT = global_opcode("collections", "Counter")
MANY = b"\x80\x02}q\x00(" + b"".join(binary_int(n) + b"N" for n in range(50_000)) + b"u"
BOMBS = {
    "bytearray(6 << 30)": (
        b"\x80\x02" + global_opcode("builtins", "bytearray") + b"(" + binary_int(6 << 30) + b"tR.",
        "makes bytes of something else",
    ),
    "bytes(6 << 30)": (
        b"\x80\x02" + global_opcode("builtins", "bytes") + b"(" + binary_int(6 << 30) + b"tR.",
        "makes bytes of something else",
    ),
    "200,000 levels of lists": (b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", "deeper than"),
    "200,000 levels of tuples": (b"\x80\x02)" + b"\x85" * 200_000 + b".", "deeper than"),
    "200,000 levels of dicts": (b"\x80\x02" + b"}N" * 200_000 + b"}" + b"s" * 200_000 + b".", "deeper than"),
    "200,000 levels as a key": (b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", "as a key"),
    "references that multiply": (doubling(12), "more than 300000 values"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "deeper than"),
    "a dict in itself": (b"\x80\x02}q\x00K\x00h\x00s.", "deeper than"),
    "a number of 5 MB": (
        b"\x80\x02\x8b" + struct.pack("<I", 5 << 20) + b"\x7f" * (5 << 20) + b".",
        "5242880 bytes",
    ),
    "a number of -1 bytes": (b"\x80\x02\x8b\xff\xff\xff\xff.", "4294967295 bytes"),
    "a string of 2 ** 63 bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 63) + b".", "more than there are"),
    "a text of 4 GB": (b"\x80\x02X\xff\xff\xff\xff.", "more than there are"),
    "a frame of 2 ** 63 bytes": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 63) + b".", "frame"),
    "two million empty lists": (b"\x80\x02(" + b"]" * 2_000_000 + b"l.", "more than 1000000 opcodes"),
    "a million sets": (b"\x80\x04(" + b"\x8f" * 1_000_000 + b"t.", "more than 1000000 opcodes"),
    "a dict copied 200,000 times": (
        MANY + b"0" + (GLOBAL_DICT + b"(h\x00tR0") * 20_000 + b"}.",
        "more than 1000000 opcodes",
    ),
    "text copied 200,000 times": (
        b"\x80\x02(" + (text("x" * 1000) + b"2" * 60) + b"tq\x000"
        + (global_opcode("pathlib", "PosixPath") + b"h\x00R0") * 20_000 + b"}.",
        "more than 1000000 opcodes",
    ),
    "a megabyte of keys": (b"\x80\x02}" + b"X\x00\x00\x10\x00" + b"k" * (1 << 20) + b"Ns.", "as a key"),
    "64 MB of short strings": (
        b"\x80\x02(" + (b"X\x00\x04\x00\x00" + b"s" * 1024) * 65_000 + b"t.", "bytes of short strings"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_data_bombs(name: str, hostile: Check) -> None:
    hostile(*BOMBS[name])


def numpy_array(
    shape: object = (2, 3),
    code: str = "f4",
    content: object = bytes(24),
    order: str = "<",
    fortran: bool = False,
) -> bytes:
    """An array whose parts are not checked by NumPy."""
    parts = [pickle.dumps(part, 2)[2:-1] for part in (shape, code, content, order)]
    dtype = (
        global_opcode("numpy", "dtype")
        + b"("
        + parts[1]
        + b"\x89\x88tR(K\x03"
        + parts[3]
        + b"NNNK\x00K\x00K\x00tb"
    )
    start = global_opcode("numpy.core.multiarray", "_reconstruct") + b"(" + global_opcode("numpy", "ndarray")
    flag = b"\x88" if fortran else b"\x89"
    state = b"(K\x01" + parts[0] + dtype + flag + parts[2] + b"tb"
    return b"\x80\x04}" + text("w") + start + b"K\x00\x85C\x01btR" + state + b"s."


ARRAYS = {
    "short": (numpy_array(content=bytes(23)), "takes 24 bytes, the file gives 23"),
    "long": (numpy_array(content=bytes(25)), "takes 24 bytes, the file gives 25"),
    "8 GB": (numpy_array(shape=(1 << 31,)), "takes 8589934592 bytes"),
    "negative": (numpy_array(shape=(-2, 3)), "negative"),
    "negative twice": (numpy_array(shape=(-2, -3)), "negative"),
    "overflowing": (numpy_array(shape=(1 << 62, 1 << 62)), "more elements than any file"),
    "empty, of overflowing": (numpy_array((0, 1 << 62, 1 << 62), content=b""), "more elements than any file"),
    "10,000 dimensions": (numpy_array(shape=(1,) * 10_000), "10000 dimensions"),
    "fractions": (numpy_array(shape=(2.0, 3)), "not a whole number"),
    "booleans": (numpy_array(shape=(True, 6)), "not a whole number"),
    "object": (numpy_array(code="O8", content=[1, 2, 3, 4, 5, 6]), "type O8"),
    "text": (numpy_array(code="U6"), "type U6"),
    "void": (numpy_array(code="V4"), "type V4"),
    "list content": (numpy_array(content=[1]), "not bytes"),
    "big-endian": (numpy_array(order=">"), "big-endian"),
    "never filled": (
        b"\x80\x02}" + text("w") + global_opcode("numpy.core.multiarray", "_reconstruct")
        + b"(" + global_opcode("numpy", "ndarray") + b"K\x00\x85U\x01btRs.",
        "never filled",
    ),
    "of a large shape from the start": (
        b"\x80\x02" + global_opcode("numpy.core.multiarray", "_reconstruct") + b"("
        + global_opcode("numpy", "ndarray") + binary_int(1 << 33) + b"\x85U\x01btR.",
        "something else than a plain numpy array",
    ),
    "text beyond U+00FF": (
        numpy_array((300,), content=b"\xe9" * 1200).replace(b"\xc3\xa9", b"\xc4\xa9", 5),
        "above U+00FF",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_numpy_arrays_that_lie(name: str, hostile: Check) -> None:
    hostile(*ARRAYS[name])


def test_the_array_that_does_not_lie(tmp_path: Path) -> None:
    values = np.arange(6, dtype="f4")
    (tmp_path / "good").write_bytes(numpy_array(content=values.tobytes(), fortran=True))
    assert_opens(tmp_path / "good")
    with open_weights(tmp_path / "good") as weights:
        assert np.array_equal(weights.read("w"), values.reshape(3, 2).T)


NAMES = {
    "empty": ("", "is empty"),
    "of 1025 characters": ("n" * 1025, "a string of 1025 bytes as a key"),
    "with NUL": ("a\0b", "control characters"),
    "with escape codes": ("a\x1b[2Jb", "control characters"),
    "with a line break": ("a\nb", "control characters"),
    "with a direction override": ("a\u202eb", "control characters"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, hostile: Check) -> None:
    spelled, reason = NAMES[name]
    content = pickle.dumps({spelled: np.zeros(300, "f4")}, 4)
    hostile(content, reason)


def test_names_that_meet_are_refused(hostile: Check) -> None:
    array = np.zeros(3, "f4")
    content = pickle.dumps({"a": {"b": array}, "a.b": array}, 4)
    hostile(content, "'a.b': appears twice")


SLICES: dict[str, tuple[Any, str]] = {
    "not a table": ({"UnpackBigParamInfor@@": [1]}, "is not a table"),
    "malformed": ({"UnpackBigParamInfor@@": {"w": {"slices": ["a"]}}}, "malformed"),
    "missing": ({"UnpackBigParamInfor@@": {"w": {"OriginShape": (2,), "slices": ["w@@.0"]}}}, "missing"),
    "twice": (
        {"a": np.zeros(2, "f4"), "UnpackBigParamInfor@@": {"w": {"OriginShape": (4,), "slices": ["a", "a"]}}},
        "used twice",
    ),
    "whole too": (
        {
            "a": np.zeros(2, "f4"),
            "w": 1,
            "UnpackBigParamInfor@@": {"w": {"OriginShape": (2,), "slices": ["a"]}},
        },
        "whole and in slices",
    ),
    "of another size": (
        {"a": np.zeros(2, "f4"), "UnpackBigParamInfor@@": {"w": {"OriginShape": (3,), "slices": ["a"]}}},
        "takes 12 bytes, the file gives 8",
    ),
    "of two types": (
        {
            "a": np.zeros(2, "f4"),
            "b": np.zeros(2, "i4"),
            "UnpackBigParamInfor@@": {"w": {"OriginShape": (4,), "slices": ["a", "b"]}},
        },
        "different types",
    ),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_that_disagree(name: str, hostile: Check) -> None:
    content, reason = SLICES[name]
    hostile(pickle.dumps(content, 2), reason)


LEGACY_HEAD = b"".join(pickle.dumps(part, 2) for part in (MAGIC_NUMBER, VERSION, {"little_endian": True}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (LEGACY_HEAD, "ends without a stop"),
        (LEGACY_HEAD + pickle.dumps({}, 2), "ends without a stop"),
        (LEGACY_HEAD + pickle.dumps({}, 2) + pickle.dumps(3, 2), "lacks its list"),
        (LEGACY_HEAD + pickle.dumps({}, 2) + pickle.dumps(["0"], 2), "no tensor uses"),
        (LEGACY_HEAD + pickle.dumps({}, 2) + pickle.dumps([], 2) + b"x", "1 bytes follow"),
        (pickle.dumps(MAGIC_NUMBER, 2) + pickle.dumps(1002, 2), "version 1001"),
        (pickle.dumps(MAGIC_NUMBER, 2) + pickle.dumps(VERSION, 2) + pickle.dumps({}, 2), "big-endian"),
    ],
)
def test_legacy_files_that_lie(content: bytes, reason: str, hostile: Check) -> None:
    hostile(content, reason)


def test_text_used_by_many_arrays_is_checked_once(hostile: Check) -> None:
    """10,000 arrays over the same 2 MB: short work, and more tensors than the file can mean."""
    one = numpy_array((1 << 20,), "u1", b"\xe9" * (1 << 20))
    first = one.index(b"c_codecs")
    last = one.index(b"R", one.index(b"latin1")) + 1
    start, end = one[9:first], one[last:-2]
    arrays = b"".join(text(f"a{n}") + start + b"h\x63" + end for n in range(10_000))
    content = b"\x80\x02" + one[first:last] + b"q\x630}(" + arrays + b"u."
    hostile(content, "over 16 times the bytes in the file")


PYTHON_2 = (
    b"\x80\x02}q\x00U\x01wcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    b"(K\x01K\x02\x85cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs."
)


def test_python_2_wrote_strings_for_bytes(tmp_path: Path) -> None:
    long = np.arange(1000, dtype="f4")
    raw = b"T" + struct.pack("<I", long.nbytes) + long.tobytes()
    content = PYTHON_2.replace(b"U\x08\x00\x00\x80?\x00\x00\x00@", raw).replace(
        b"K\x02\x85", b"M\xe8\x03\x85"
    )
    for pickled, expected in ((PYTHON_2, np.array([1, 2], "f4")), (content, long)):
        (tmp_path / "good").write_bytes(pickled)
        assert_opens(tmp_path / "good")
        with open_weights(tmp_path / "good") as weights:
            assert np.array_equal(weights.read("w"), expected)


def test_megatron_enumerations_are_text(tmp_path: Path) -> None:
    content = b"\x80\x02cmegatron.model.enums\nAttnMaskType\nK\x02\x85R."
    (tmp_path / "good").write_bytes(content)
    with open_weights(tmp_path / "good") as weights:
        assert weights.tree == "AttnMaskType(2)"


def test_python_2_wrote_ordered_dicts_as_pairs(tmp_path: Path) -> None:
    pairs = b"\x80\x02ccollections\nOrderedDict\n](](U\x01aK\x01e](U\x01bK\x02ee\x85R."
    (tmp_path / "good").write_bytes(pairs)
    with open_weights(tmp_path / "good") as weights:
        assert weights.tree == {"a": 1, "b": 2}


GOOD: dict[str, object] = {
    "an empty dict": {},
    "numbers of every size": {"n": [0, 255, 256, -1, 1 << 40, -(1 << 70), 1.5, None, True, 3 + 4j]},
    "long text": {"t": "x" * 100_000},
    "bytes": {"b": b"\x00\xff" * 5000, "s": b"\xff"},
    "sets": {"s": {1, "a"}, "f": frozenset([2])},
    "64 levels": __import__("functools").reduce(lambda inner, _: [inner], range(60), 1),
    "shared values": [[shared := [1, 2]], shared],
    "odd keys": {None: 1, True: 2, (1, "a"): 3, b"k": 4},
    "NumPy scalars": {"loss": np.float64(1.5), "n": np.int32(-3), "h": np.float16(2)},
    "an array twice": {"a": (array := np.arange(600, dtype="f4")), "b": array},
    "a Fortran array": {"a": np.asfortranarray(np.arange(600.0).reshape(20, 30))},
    "an array without elements": {"a": np.zeros((0, 3), "f4"), "s": np.array(3.0)},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", GOOD)
def test_the_neighbours_load(name: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "good"
    path.write_bytes(pickle.dumps(GOOD[name], protocol))
    assert_opens(path)
    expected = GOOD[name]
    with open_weights(path) as weights:
        if weights.tensors and isinstance(expected, dict):
            for key, info in weights.tensors.items():
                assert np.array_equal(weights.read(key), expected[key])
                assert info.dtype == str(expected[key].dtype)
        else:
            assert weights.tree == expected
