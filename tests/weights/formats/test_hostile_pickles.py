"""Pickles that carry code: refused by name, nothing run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.weights.formats.conftest import Check
from tests.weights.formats.pickled import CONTAINERS, call, global_opcode, stack_global, text

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


@pytest.mark.parametrize("call_of", CALLS, ids=lambda row: ".".join(row[:2]))
def test_a_call_is_refused_by_name(call_of: tuple[str, ...], hostile: Check) -> None:
    reason = f"{call_of[1]}, which is not weight data"
    hostile(call(*call_of), reason)


def test_the_canary_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(call("os", "system", "touch CANARY"))
    assert (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "second pickle"])
@pytest.mark.parametrize("push", [global_opcode, stack_global], ids=["GLOBAL", "STACK_GLOBAL"])
def test_in_every_place_and_by_every_name_opcode(
    container: str, push: Callable[[str, str], bytes], hostile: Check
) -> None:
    payload = b"\x80\x04" + push("os", "system") + b"(" + text("touch CANARY") + b"tR."
    hostile(CONTAINERS[container](payload), "names os.system")


def test_a_second_pickle_is_refused(hostile: Check) -> None:
    payload = CONTAINERS["second pickle"](call("os", "system", "touch CANARY"))
    hostile(payload, "bytes follow its pickle")


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
def test_opcodes(name: str, hostile: Check) -> None:
    hostile(*OPCODES[name])


@pytest.mark.parametrize("protocol", range(6))
def test_reduce_at_every_protocol(protocol: int, hostile: Check) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            import os

            return os.system, ("touch CANARY",)

    content = pickle.dumps({"w": Payload()}, protocol)
    reason = "posix.system" if protocol >= 2 else "no weight file"
    hostile(content, reason)
