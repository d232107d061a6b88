"""torch.save since 1.6: a zip of `NAME/data.pkl` and the storages `NAME/data/KEY`, all stored plain."""

from __future__ import annotations

from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.torch_tensors import TorchTensors
from gptbridge.weights.formats.weight_file import Checksum, Contents
from gptbridge.weights.formats.zip_directory import Member, read_members

_PICKLE = "data.pkl"
_STORAGES = "data/"
_SCRIPT_MEMBERS = ("constants.pkl", "code/")


def read_torch_zip(source: SourceFile) -> Contents:
    """Check the archive and decode its pickle; the storages stay in the file."""
    contents = Contents(source, "torch")
    members = _inside_root(source, read_members(source))
    contents.checksums += [
        Checksum(f"member {member.name}", member.offset, member.nbytes, member.crc32)
        for member in members.values()
    ]
    order = members.get("byteorder")
    if order is not None and source.bytes_at(order.offset, order.nbytes, "byteorder")[:16] != b"little":
        source.refuse("is big-endian", allowed="little-endian")
    pickle = members[_PICKLE]
    tensors = TorchTensors(source, pickle.offset, pickle.offset + pickle.nbytes)
    root = tensors.decoder.decode()
    if tensors.decoder.position != pickle.offset + pickle.nbytes:
        source.refuse("bytes follow the pickle in data.pkl")
    storages = {
        name.removeprefix(_STORAGES): (member.offset, member.nbytes)
        for name, member in members.items()
        if name.startswith(_STORAGES)
    }
    tensors.add_tree(contents, root, storages)
    return contents


def _inside_root(source: SourceFile, members: dict[str, Member]) -> dict[str, Member]:
    """Return the members by their names inside the archive's one folder."""
    roots = {name.partition("/")[0] for name in members}
    inside = {name.partition("/")[2]: member for name, member in members.items()}
    if any(name.startswith(_SCRIPT_MEMBERS) for name in inside):
        source.refuse("is a TorchScript program", allowed="torch.save(model.state_dict(), ...)")
    if len(roots) != 1 or _PICKLE not in inside:
        source.refuse("is a zip archive that torch.save did not write: it lacks one folder with data.pkl")
    return inside
