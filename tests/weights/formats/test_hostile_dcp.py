"""Distributed checkpoints whose .metadata lies, or carries code: one line, nothing run, no memory taken."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from gptbridge.errors import BadInput
from gptbridge.weights.formats import open_weights, write_dcp
from gptbridge.weights.formats.dcp_metadata import Place, Saved
from gptbridge.weights.formats.dcp_writer import encode_metadata
from gptbridge.weights.formats.output import Checksum, new_file
from gptbridge.weights.formats.pickles import encoder
from gptbridge.weights.formats.tensor import TensorInfo
from gptbridge.weights.formats.torch_writer import append_tensor
from tests.weights.formats.conftest import MAX_BYTES, MAX_SECONDS, entry, judge, make_array, read_file
from tests.weights.formats.pickled import call
from tests.weights.formats.test_fuzz import EXAMPLES, mutations

TABLE = make_array("float32", (7, 6))
# (first element, shape) of four parts of ranks of FSDP2 and tensor parallelism, none as large as another
GRID = (((0, 0), (4, 5)), ((4, 0), (3, 5)), ((0, 5), (4, 1)), ((4, 5), (3, 1)))
CHUNK = b"ctorch.distributed.checkpoint.metadata\nChunkStorageMetadata\n\x94)\x81"
SIGNATURE = b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x94"


def saved(folder: Path, grid: Sequence[tuple[tuple[int, ...], tuple[int, ...]]] = GRID) -> Saved:
    """Write the parts of TABLE into a file for each column of the grid; return what .metadata should say."""
    places: list[Place] = []
    for column in dict.fromkeys(offsets[1] for offsets, _ in grid):
        name = f"__{column}_0.distcp"
        with new_file(folder / name) as output, Checksum() as checksum:
            for offsets, shape in grid:
                if offsets[1] == column:
                    start = output.position
                    rows, columns = (slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
                    part = np.ascontiguousarray(TABLE[rows, columns])
                    info = TensorInfo("anything", "float32", part.shape)
                    append_tensor(output, checksum, (info, partial(iter, [part])))
                    places.append(Place(offsets, shape, name, start, output.position - start))
    return Saved("float32", TABLE.shape, tuple(places))


def write_metadata(folder: Path, tensor: Saved) -> Path:
    path = folder / ".metadata"
    path.write_bytes(encode_metadata({("w",): tensor}))
    return path


def assert_refused(path: Path, words: str) -> None:
    """In one line that names a file, within the limits."""
    verdict = judge(path)
    assert verdict.outcome == "refused", verdict
    assert str(path.parent) in verdict.message
    assert re.search(words, verdict.message), verdict.message
    assert verdict.message.isprintable()
    assert len(verdict.message) < 600
    assert verdict.seconds < MAX_SECONDS, verdict
    assert verdict.grown_bytes < MAX_BYTES, verdict


def changed(tensor: Saved, number: int, **changes: object) -> Saved:
    """Say something else of one part."""
    places = list(tensor.places)
    places[number] = replace(places[number], **changes)  # type: ignore[arg-type]
    return replace(tensor, places=tuple(places))


def test_parts_are_one_tensor(tmp_path: Path) -> None:
    path = write_metadata(tmp_path, saved(tmp_path))
    with open_weights(path) as weights:
        assert weights.format == "dcp"
        assert weights.read("w").tobytes() == TABLE.tobytes()
        assert weights.rows("w", 3, 5).tobytes() == TABLE[3:5].tobytes()
        assert [part.offsets for part in weights.parts("w")] == [offsets for offsets, _ in GRID]
    assert judge(path).outcome == "opened"


@pytest.mark.parametrize("shape", [(), (0,), (5, 0), (3,), (2, 3, 4)])
def test_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = make_array("bfloat16", shape)
    write_dcp(tmp_path / ".metadata", [entry("w", "bfloat16", array)])
    with open_weights(tmp_path / ".metadata") as weights:
        assert weights.read("w").tobytes() == array.tobytes()
        assert (weights.tensors["w"].dtype, weights.tensors["w"].shape) == ("bfloat16", shape)


LIES: dict[str, tuple[Callable[[Saved], Saved], str]] = {
    "beyond the file": (lambda t: changed(t, 1, offset=1 << 40), r"__0_0.distcp: tensor 'w': ends at byte"),
    "longer than the file": (lambda t: changed(t, 3, nbytes=1 << 40), "but its part at"),
    "before the file": (lambda t: changed(t, 0, offset=-8), "__0_0.distcp: tensor 'w'"),
    "of no length": (lambda t: changed(t, 0, nbytes=0), "__0_0.distcp: "),
    "shorter than it is": (lambda t: changed(t, 0, nbytes=t.places[0].nbytes - 1), "__0_0.distcp: "),
    "between two": (lambda t: changed(t, 0, offset=64), "has no torch.save at byte 64"),
    "another's": (
        lambda t: changed(t, 0, offset=t.places[1].offset, nbytes=t.places[1].nbytes),
        r"its part at \(0, 0\) is float32 \(3, 5\), said to be float32 \(4, 5\)",
    ),
    "another type": (lambda t: replace(t, dtype="int32"), "is float32 .* said to be int32"),
    "a hole": (
        lambda t: replace(t, places=t.places[:3]),
        r"\.metadata: tensor 'w': no part holds what is at \(4, 5\)",
    ),
    "no parts": (lambda t: replace(t, places=()), r"no part holds what is at \(0, 0\)"),
    "overlapping": (
        lambda t: changed(t, 2, offsets=(0, 4)),
        r"tensor 'w': its part at \(0, 4\) overlaps another",
    ),
    "twice": (lambda t: replace(t, places=(*t.places, t.places[0])), "overlaps another"),
    "a hole and an overlap": (
        lambda t: replace(t, places=(*t.places[:3], replace(t.places[3], offsets=(3, 5)))),
        "overlaps another",
    ),
    "outside the tensor": (lambda t: changed(t, 3, offsets=(5, 5)), "leaves the tensor of shape"),
    "negative": (lambda t: changed(t, 0, offsets=(-1, 0)), "leaves the tensor of shape"),
    "of other dimensions": (lambda t: changed(t, 0, offsets=(0,), shape=(20,)), "malformed"),
    "huge": (lambda t: replace(t, shape=(1 << 40, 1 << 40)), "more elements than any file"),
    "negative shape": (lambda t: replace(t, shape=(-7, 6)), "a dimension is negative"),
    "a terabyte": (lambda t: replace(t, shape=(1 << 19, 1 << 19)), "claim over 16 times the bytes"),
    "absent file": (lambda t: changed(t, 1, file="__9_0.distcp"), "__9_0.distcp: cannot be opened"),
    "outside the folder": (lambda t: changed(t, 1, file="../__0_0.distcp"), "is said to be in '../__0"),
    "absolute": (lambda t: changed(t, 1, file="/dev/zero.distcp"), "is said to be in '/dev/zero"),
    "another kind of file": (lambda t: changed(t, 1, file="passwords.txt"), "allowed: the name of a"),
    "escaped": (lambda t: changed(t, 1, file="\x1b[31m.distcp"), r"is said to be in '\\+x1b\[31m"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_by_name(lie: str, tmp_path: Path) -> None:
    tell, words = LIES[lie]
    path = write_metadata(tmp_path, tell(saved(tmp_path)))
    assert_refused(path, words)


def test_offsets_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """A set within them has no hash."""
    path = write_metadata(tmp_path, saved(tmp_path))
    whole = path.read_bytes()
    origin, set_and_0 = b"(K\x00K\x00t", b"(\x8fK\x00t"
    assert origin in whole
    path.write_bytes(whole.replace(origin, set_and_0))
    assert_refused(path, "leaves the tensor of shape")


def test_very_many_parts_are_refused(tmp_path: Path) -> None:
    """A grid of cells without end from a few thousand parts along the diagonal."""
    place = saved(tmp_path).places[0]
    (tmp_path / place.file).write_bytes((tmp_path / place.file).read_bytes() + bytes(8 << 20))
    parts = tuple(replace(place, offsets=(n, n, 0), shape=(1, 1, 1)) for n in range(4000))
    path = write_metadata(tmp_path, Saved("float32", (4000, 4000, 1), parts))
    assert_refused(path, "is cut into too many parts")


@pytest.mark.parametrize(
    ("pickle", "words"),
    [
        (call("os", "system", "touch CANARY"), "names os.system, which is not weight data"),
        (call("builtins", "eval", "open('CANARY', 'w')"), "names builtins.eval"),
        (call("torch._utils", "_rebuild_tensor_v2", "x"), "names torch._utils._rebuild"),
        (call("argparse", "Namespace", "x"), "names argparse.Namespace"),
        (
            call("torch.distributed.checkpoint.metadata", "Metadata", "x"),
            "makes a torch.distributed.checkpoint.metadata.Metadata with arguments",
        ),
        (call("torch", "Size", "x"), "malformed torch.Size"),
        (b"}", "is not the Metadata of a distributed checkpoint"),
        (b"}" * 5_000_000, "has more than 3200000 opcodes"),
        (b"(" * 100 + b"J\xff\xff\xff\x7f" * 5_000_000, "has more than 3200000 opcodes"),
        (b")" + b"\x85" * 5_000_000, "has more than 3200000 opcodes"),
        (b")" + b"\x85\x94" * 5_000_000, "has more than 3200000 opcodes"),
        (b")\x94" + b"h\x01" * 12_000_000, "has more than 3200000 opcodes"),
        (b"}\x94" * 5_000_000, "has more than 3200000 opcodes"),
        (b"}K\x00Ns" * 3_000_000, "has more than 3200000 opcodes"),
        (CHUNK + b"0" + b"h\x01)\x81" * 3_000_000, "has more than 3200000 opcodes"),
        (CHUNK + b"}\x8c\x01aNsb}b", "sets the state of a .*ChunkStorageMetadata"),
    ],
)
def test_what_is_no_metadata_is_refused(
    pickle: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(SIGNATURE + b"0" + pickle + b".")
    monkeypatch.chdir(tmp_path)
    assert_refused(path, words)
    assert [file.name for file in tmp_path.iterdir()] == [".metadata"]


@pytest.mark.timeout(120)
def test_many_thousand_parts_are_read_in_bounded_memory(tmp_path: Path) -> None:
    """What 64 ranks save of a large model and its optimizer; the parts are looked into when asked for."""
    (tmp_path / "__0_0.distcp").write_bytes(bytes(1 << 20))
    ranks, tensors = 64, 900
    places = [Place((4 * rank, 0), (4, 8), "__0_0.distcp", 0, 900) for rank in range(ranks)]
    whole = Saved("float32", (4 * ranks, 8), tuple(places))
    names = [("model", f"layers.{number}.linear_fc1.weight") for number in range(tensors)]
    path = tmp_path / ".metadata"
    path.write_bytes(encode_metadata(dict.fromkeys(names, whole)))
    verdict = judge(path)
    assert "has no torch.save" in verdict.message or "overlaps" in verdict.message, verdict
    assert verdict.seconds < 2 * MAX_SECONDS, verdict
    assert verdict.grown_bytes < MAX_BYTES, verdict


def test_compressed_parts_are_refused(tmp_path: Path) -> None:
    """torch's extensions of the streams that it writes."""
    raw = encode_metadata({("w",): saved(tmp_path)})
    length = encoder.text("length")
    extra = encoder.text("transform_descriptors") + encoder.plain(["stream.zstd"])
    (tmp_path / ".metadata").write_bytes(raw.replace(length, extra + length))
    assert_refused(tmp_path / ".metadata", r"is stored through \['stream.zstd'\]")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write_metadata(tmp_path, saved(tmp_path))
    file = tmp_path / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[content.index(TABLE[4:7, 0:5].tobytes())] ^= 1
    file.write_bytes(content)
    assert_refused(path, "__0_0.distcp: member archive/data/0 is damaged: its CRC-32 differs")


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_mutated_checkpoints(name: str, tmp_path: Path) -> None:
    """Either file changed anywhere: data that fits together, or BadInput."""
    path = write_metadata(tmp_path, saved(tmp_path))
    valid = (tmp_path / name).read_bytes()

    @EXAMPLES
    @given(mutations(valid))
    def check(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with suppress(BadInput):
            read_file(path)

    check()
    (tmp_path / name).write_bytes(valid)
    read_file(path)


def test_every_byte_flipped(tmp_path: Path) -> None:
    path = write_metadata(tmp_path, saved(tmp_path))
    for file in (path, tmp_path / "__0_0.distcp"):
        valid = file.read_bytes()
        for position in range(0, len(valid), 7):
            content = bytearray(valid)
            content[position] ^= 1 << position % 8
            file.write_bytes(content)
            with suppress(BadInput):
                read_file(path)
        file.write_bytes(valid)
    read_file(path)
