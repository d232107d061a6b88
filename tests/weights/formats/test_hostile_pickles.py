"""Pickles that carry code, or data that grows: refused by name, nothing run; their neighbours load."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge.weights.formats import open_weights
from gptbridge.weights.formats.torch_legacy import MAGIC_NUMBER, VERSION
from tests.weights.formats.conftest import assert_opens, assert_refused
from tests.weights.formats.containers import legacy, torch_zip

Container = Callable[[bytes], bytes]


def in_name_table(payload: bytes) -> bytes:
    """The payload as the value of Paddle's table of names, after a good array."""
    good = pickle.dumps(np.arange(3.0, dtype="f4"), 4)[2:-1]
    body = payload[2:-1] if payload[:1] == b"\x80" else payload[:-1]
    return (
        b"\x80\x04}(X\x01\x00\x00\x00a"
        + good
        + b"X\x1b\x00\x00\x00StructuredToParameterName@@"
        + body
        + b"u."
    )


CONTAINERS: dict[str, Container] = {
    "pdparams": lambda payload: payload,
    "name table": in_name_table,
    "torch zip": lambda payload: torch_zip(payload),
    "torch legacy": lambda payload: legacy(payload),
    "second pickle": lambda payload: pickle.dumps({}, 4) + payload,
}


def global_opcode(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stack_global(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)) + b"\x93"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *args: str) -> bytes:
    arguments = b"(" + b"".join(text(value) for value in args) + b"t"
    return b"\x80\x02" + global_opcode(module, name) + arguments + b"R."


# Each would touch the file CANARY if anything in the pickle were run.
CALLS = [
    ("os", "system", "touch CANARY"),
    ("posix", "system", "touch CANARY"),
    ("nt", "system", "touch CANARY"),
    ("subprocess", "Popen", "touch CANARY"),
    ("subprocess", "getoutput", "touch CANARY"),
    ("subprocess", "check_output", "touch CANARY"),
    ("builtins", "exec", "open('CANARY', 'w')"),
    ("builtins", "eval", "open('CANARY', 'w')"),
    ("__builtin__", "eval", "open('CANARY', 'w')"),
    ("__builtin__", "execfile", "CANARY"),
    ("builtins", "open", "CANARY", "w"),
    ("builtins", "getattr", "os", "system"),
    ("builtins", "__import__", "antigravity"),
    ("builtins", "compile", "1", "1", "exec"),
    ("builtins", "breakpoint"),
    ("builtins", "print", "x"),
    ("io", "open", "CANARY", "w"),
    ("_io", "FileIO", "CANARY", "w"),
    ("pathlib", "Path.touch", "CANARY"),
    ("functools", "partial", "x"),
    ("operator", "methodcaller", "touch"),
    ("operator", "attrgetter", "x"),
    ("timeit", "timeit", "open('CANARY', 'w')"),
    ("timeit", "main", "x"),
    ("cProfile", "run", "open('CANARY', 'w')"),
    ("pdb", "run", "open('CANARY', 'w')"),
    ("code", "interact"),
    ("runpy", "run_path", "CANARY"),
    ("importlib", "import_module", "antigravity"),
    ("ctypes", "CDLL", "CANARY"),
    ("pickle", "loads", "x"),
    ("_pickle", "loads", "x"),
    ("marshal", "loads", "x"),
    ("types", "FunctionType", "x"),
    ("copyreg", "_reconstructor", "x"),
    ("copy_reg", "_reconstructor", "x"),
    ("shutil", "copyfile", "/etc/hostname", "CANARY"),
    ("webbrowser", "open", "x"),
    ("numpy", "load", "CANARY"),
    ("numpy", "fromfile", "CANARY"),
    ("numpy", "memmap", "CANARY", "u1", "w+"),
    ("numpy.testing._private.utils", "runstring", "open('CANARY', 'w')", "x"),
    ("numpy.distutils.exec_command", "exec_command", "touch CANARY"),
    ("numpy.core.multiarray", "fromstring", "x"),
    ("torch", "load", "CANARY"),
    ("torch.hub", "load", "x"),
    ("torch.jit", "load", "x"),
    ("torch.storage", "_load_from_bytes", "x"),
    ("torch.utils.cpp_extension", "load_inline", "x"),
    ("torch.serialization", "load", "x"),
    ("torch._utils", "_rebuild_wrapper_subclass", "x"),
    ("paddle", "load", "CANARY"),
    ("paddle.utils.cpp_extension", "load", "x"),
    ("paddle.distributed.fleet.utils.fs", "LocalFS.touch", "CANARY"),
    ("mindspore", "load_checkpoint", "x"),
    ("collections", "namedtuple", "x"),
    ("argparse", "ArgumentParser", "x"),
    ("this", "s"),
]


def assert_harmless(content: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile").write_bytes(content)
    assert_refused(tmp_path / "hostile", reason)
    assert [child.name for child in tmp_path.iterdir()] == ["hostile"]


@pytest.mark.parametrize("call_of", CALLS, ids=lambda row: ".".join(row[:2]))
def test_a_call_is_refused_by_name(
    call_of: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = f"{call_of[1]}, which is not weight data"
    assert_harmless(call(*call_of), reason, tmp_path, monkeypatch)


def test_the_canary_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(call("os", "system", "touch CANARY"))
    assert (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "second pickle"])
@pytest.mark.parametrize("push", [global_opcode, stack_global], ids=["GLOBAL", "STACK_GLOBAL"])
def test_in_every_place_and_by_every_name_opcode(
    container: str, push: Callable[[str, str], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = b"\x80\x04" + push("os", "system") + b"(" + text("touch CANARY") + b"tR."
    assert_harmless(CONTAINERS[container](payload), "names os.system", tmp_path, monkeypatch)


def test_a_second_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = CONTAINERS["second pickle"](call("os", "system", "touch CANARY"))
    assert_harmless(payload, "bytes follow its pickle", tmp_path, monkeypatch)


OS_SYSTEM = global_opcode("os", "system")
EVAL = global_opcode("builtins", "eval")
ARGUMENT = text("touch CANARY")
OPCODES = {
    "INST": (b"\x80\x02(" + ARGUMENT + b"ios\nsystem\n.", "INST"),
    "OBJ": (b"\x80\x02(" + OS_SYSTEM + ARGUMENT + b"o.", "os.system"),
    "OBJ alone": (b"\x80\x02(" + ARGUMENT + b"o.", "OBJ"),
    "NEWOBJ": (b"\x80\x02" + OS_SYSTEM + b"(" + ARGUMENT + b"t\x81.", "os.system"),
    "NEWOBJ_EX": (b"\x80\x04}}(}t\x92.", "NEWOBJ_EX"),
    "BUILD": (b"\x80\x02" + global_opcode("argparse", "Namespace") + b")\x81(Nt" + b"b.", "sets the state"),
    "BUILD on a global": (b"\x80\x02" + global_opcode("numpy", "ndarray") + b"}b.", "sets the state"),
    "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
    "EXT2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "PERSID": (b"\x80\x02Pabc\n.", "PERSID"),
    "BINPERSID": (b"\x80\x02)Q.", "a storage outside"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "a call of a value": (b"\x80\x02})R.", "calls"),
    "a call with a list": (b"\x80\x02" + global_opcode("collections", "OrderedDict") + b"]R.", "calls"),
    "code before a cut": (b"\x80\x02" + OS_SYSTEM + b"(" + ARGUMENT + b"tR", "os.system"),
    "protocol 6": (b"\x80\x06}.", "protocol 6"),
    "protocol 255": (b"\x80\xff}.", "protocol 255"),
    "unknown opcode": (b"\x80\x02\xfe.", "0xfe"),
    "no stop": (b"\x80\x02}", "ends without a stop"),
    "empty stack": (b"\x80\x02.", "leaves 0 values"),
    "two values": (b"\x80\x02}}.", "leaves 2 values"),
    "pop nothing": (b"\x80\x020}.", "more values than it gave"),
    "no mark": (b"\x80\x02}u.", "did not open"),
    "mark as a value": (b"\x80\x02((a.", "mark"),
    "unknown memo": (b"\x80\x02h\x07.", "did not remember"),
    "append to a dict": (b"\x80\x02}K\x01a.", "treats a dict as a list"),
    "odd items": (b"\x80\x02}(K\x01u.", "without a value"),
    "list as a key": (b"\x80\x02}]Ns.", "as a key"),
    "frozen key of keys": (b"\x80\x02}(((K\x01tttNs.", "as a key"),
    "not UTF-8": (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
    "surrogate": (b"\x80\x02X\x03\x00\x00\x00\xed\xa0\x80.", "not UTF-8"),
    "long name": (b"\x80\x02c" + b"a" * 2000 + b"\nb\n.", "does not end"),
    "a name that is a number": (b"\x80\x04K\x01K\x02\x93.", "not text"),
    "a function as a value": (b"\x80\x02" + global_opcode("_codecs", "encode") + b".", "as a value"),
    "eval as a value": (b"\x80\x02" + EVAL + b".", "builtins.eval"),
    "eval of nearly the right thing": (
        b"\x80\x02" + EVAL + b"(" + text("data") + b"}" + text("data") + b"NstR.",
        "builtins.eval",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPCODES)
def test_opcodes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, reason = OPCODES[name]
    assert_harmless(content, reason, tmp_path, monkeypatch)


@pytest.mark.parametrize("protocol", range(6))
def test_reduce_at_every_protocol(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            import os

            return os.system, ("touch CANARY",)

    content = pickle.dumps({"w": Payload()}, protocol)
    reason = "posix.system" if protocol >= 2 else "no weight file"
    assert_harmless(content, reason, tmp_path, monkeypatch)


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
def test_data_bombs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, reason = BOMBS[name]
    assert_harmless(content, reason, tmp_path, monkeypatch)


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
def test_numpy_arrays_that_lie(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, reason = ARRAYS[name]
    assert_harmless(content, reason, tmp_path, monkeypatch)


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
def test_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spelled, reason = NAMES[name]
    content = pickle.dumps({spelled: np.zeros(300, "f4")}, 4)
    assert_harmless(content, reason, tmp_path, monkeypatch)


def test_names_that_meet_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros(3, "f4")
    content = pickle.dumps({"a": {"b": array}, "a.b": array}, 4)
    assert_harmless(content, "'a.b': appears twice", tmp_path, monkeypatch)


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
def test_slices_that_disagree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, reason = SLICES[name]
    assert_harmless(pickle.dumps(content, 2), reason, tmp_path, monkeypatch)


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
def test_legacy_files_that_lie(
    content: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_harmless(content, reason, tmp_path, monkeypatch)


def test_text_used_by_many_arrays_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 arrays over the same 2 MB: short work, and more tensors than the file can mean."""
    one = numpy_array((1 << 20,), "u1", b"\xe9" * (1 << 20))
    first = one.index(b"c_codecs")
    last = one.index(b"R", one.index(b"latin1")) + 1
    start, end = one[9:first], one[last:-2]
    arrays = b"".join(text(f"a{n}") + start + b"h\x63" + end for n in range(10_000))
    content = b"\x80\x02" + one[first:last] + b"q\x630}(" + arrays + b"u."
    assert_harmless(content, "over 16 times the bytes in the file", tmp_path, monkeypatch)


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
