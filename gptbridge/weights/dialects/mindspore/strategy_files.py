"""MindSpore's strategy files: over which devices each tensor of a rank's checkpoint is cut.

    ParallelStrategyMap {
        current_stage = 1; repeated ParallelStrategyItem = 2; repeated ParallelLayoutItem = 3 }
    ParallelStrategyItem { node_name = 1; ParallelStrategys = 2 { stage = 1; repeated ParallelStrategy = 2 } }
    ParallelLayoutItem { param_name = 1; ParallelLayouts = 2 {
        repeated dev_matrix = 1; repeated tensor_map = 2; repeated param_split_shape = 3;
        repeated indices_offset = 4; field = 5; opt_weight_shard_step = 6; opt_weight_shard_size = 7 } }

Every list of numbers is a message {repeated dim = 1}: mindspore 2.10's train/node_strategy.proto. The newer
.json form has the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gptbridge.errors import BadInput, printable
from gptbridge.files import INDEX_LIMIT, read_json
from gptbridge.weights.dialects.mindspore.strategies import MAX_DEVICES, Strategy, TensorLayout
from gptbridge.weights.formats.protobuf import (
    LENGTH_DELIMITED,
    VARINT,
    encode_length,
    encode_varint,
    fields,
    read_varint,
)
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import MAX_DIMENSIONS, MAX_TENSORS

if TYPE_CHECKING:
    from gptbridge.weights.conversion.target import Split, TargetFile

SUFFIXES = (".ckpt", ".json")
_MAX_BYTES = 64 << 20
# ParallelStrategyMap, ParallelStrategyItem and ParallelLayoutItem, ParallelLayouts
_CURRENT_STAGE, _STRATEGY_ITEM, _LAYOUT_ITEM = 1, 2, 3
_NAME, _CONTENT = 1, 2
_DEV_MATRIX, _TENSOR_MAP, _SPLIT_SHAPE, _OFFSETS, _FIELD, _SHARD_STEP, _SHARD_SIZE = range(1, 8)
_DIM = 1
_STAGE, _STRATEGY = 1, 2
_SHARD_KEYS = {_SHARD_STEP: "opt_weight_shard_step", _SHARD_SIZE: "opt_weight_shard_size"}
_MERGED_NAME = re.compile(r"(\d{1,4})-(.+)", re.DOTALL)  # of merge_pipeline_strategys: STAGE-NAME


def read_strategies(paths: Sequence[Path]) -> Strategy:
    """Return what the strategy files of all ranks, or one merged file, say.

    BadInput for a damaged file, or when two ranks of a stage say different things.
    """
    strategy: dict[int, dict[str, TensorLayout]] = {}
    origin: dict[int, Path] = {}
    for path in paths:
        read = _read_json(path) if path.suffix == ".json" else _read_protobuf(path)
        for stage, layouts in read.items():
            if strategy.setdefault(stage, layouts) != layouts:
                _refuse(path, f"cuts stage {stage} otherwise than {printable(origin[stage].name)}")
            origin.setdefault(stage, path)
    return strategy


def _read_protobuf(path: Path) -> dict[int, dict[str, TensorLayout]]:
    source = SourceFile(path)
    try:
        if source.size > _MAX_BYTES:
            source.refuse(f"is {source.size} bytes", allowed=f"a strategy file of at most {_MAX_BYTES}")
        stage = None
        items = []
        for number, kind, begin, end in fields(source, 0, source.size):
            if (number, kind) == (_LAYOUT_ITEM, LENGTH_DELIMITED):
                items.append(_layout_item(source, begin, end))
            elif (number, kind) == (_STRATEGY_ITEM, LENGTH_DELIMITED) and stage is None:
                stage = _stage(source, begin, end)
        return _by_stage(items, stage or 0, path)
    finally:
        source.close()


def _stage(source: SourceFile, begin: int, end: int) -> int:
    """Return the stage of a ParallelStrategyItem."""
    for number, kind, start, stop in fields(source, begin, end):
        if (number, kind) == (_CONTENT, LENGTH_DELIMITED):
            for inner, inner_kind, low, high in fields(source, start, stop):
                if (inner, inner_kind) == (_STAGE, VARINT):
                    return read_varint(source, low, high)[0]
    return 0


def _layout_item(source: SourceFile, begin: int, end: int) -> tuple[str, TensorLayout]:
    name = ""
    keys: dict[str, Any] = {}
    for number, kind, start, stop in fields(source, begin, end):
        if (number, kind) == (_NAME, LENGTH_DELIMITED):
            name = source.bytes_at(start, stop - start, "a name").decode(errors="backslashreplace")
        elif (number, kind) == (_CONTENT, LENGTH_DELIMITED):
            keys = _layouts(source, start, stop)
    return name, _tensor_layout(keys, name, source.path)


def _layouts(source: SourceFile, begin: int, end: int) -> dict[str, Any]:
    """Return a ParallelLayouts with the keys of the .json form."""
    lists: dict[int, list[list[int]]] = {_DEV_MATRIX: [], _TENSOR_MAP: []}
    keys: dict[str, Any] = {}
    for number, kind, start, stop in fields(source, begin, end):
        if kind == LENGTH_DELIMITED and number in lists:
            lists[number].append(list(_numbers(source, start, stop)))
        elif kind == VARINT and number in _SHARD_KEYS:
            keys[_SHARD_KEYS[number]] = _signed(read_varint(source, start, stop)[0])
    maps = lists[_TENSOR_MAP]  # one list for all dimensions, or a list of axes for each
    keys["dev_matrix"] = lists[_DEV_MATRIX][0] if lists[_DEV_MATRIX] else []
    keys["tensor_map"] = maps[0] if len(maps) == 1 else [axes for axes in maps if axes]
    return keys


def _numbers(source: SourceFile, begin: int, end: int) -> Iterator[int]:
    """Yield the numbers of a {repeated dim = 1}, one in a field or packed."""
    for number, kind, start, stop in fields(source, begin, end):
        if number != _DIM or kind not in (VARINT, LENGTH_DELIMITED) or stop - start > _MAX_BYTES:
            source.refuse(f"is no strategy file: an odd field at byte {start}")
        while start < stop:
            value, start = read_varint(source, start, stop)
            yield _signed(value)


def _signed(value: int) -> int:
    """Return an int32 or int64 from its varint."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _read_json(path: Path) -> dict[int, dict[str, TensorLayout]]:
    content = read_json(path, limit=INDEX_LIMIT)
    layouts = content.get("parallel_layout_item")
    strategies = content.get("parallel_strategy_item")
    if not isinstance(layouts, dict) or not all(isinstance(item, dict) for item in layouts.values()):
        _refuse(path, "has no parallel_layout_item")
    first = next(iter(strategies.values()), None) if isinstance(strategies, dict) else None
    stage = first.get("stage", 0) if isinstance(first, dict) else 0
    items = [(name, _tensor_layout(item, name, path)) for name, item in layouts.items()]
    return _by_stage(items, stage, path)


def _by_stage(
    items: Sequence[tuple[str, TensorLayout]], stage: Any, path: Path
) -> dict[int, dict[str, TensorLayout]]:
    if not items or len(items) > MAX_TENSORS:
        _refuse(path, f"describes {len(items)} tensors", allowed=f"1 to {MAX_TENSORS}")
    if type(stage) is not int or not 0 <= stage < MAX_DEVICES:
        _refuse(path, f"is of stage {printable(stage, 40)}")
    strategy: dict[int, dict[str, TensorLayout]] = {}
    for name, layout in items:
        merged = _MERGED_NAME.fullmatch(name)
        where, plain = (int(merged.group(1)), merged.group(2)) if merged else (stage, name)
        strategy.setdefault(where, {})[plain] = layout
    return strategy


def _tensor_layout(keys: Mapping[str, Any], name: str, path: Path) -> TensorLayout:
    """Check and build one layout; the numbers of `tensor_map` count axes from the right, -1 is none."""
    problem = f"{printable(name)}: its layout is malformed"
    matrix, tensor_map = keys.get("dev_matrix"), keys.get("tensor_map")
    if not isinstance(matrix, list) or not isinstance(tensor_map, list) or len(tensor_map) > MAX_DIMENSIONS:
        _refuse(path, problem)
    shard = [keys.get(key, 0) for key in _SHARD_KEYS.values()]
    entries = [entry if isinstance(entry, list) else [entry] for entry in tensor_map]
    if not all(type(x) is int for x in [*shard, *matrix, *(x for entry in entries for x in entry)]):
        _refuse(path, problem)
    if not 0 < len(matrix) <= MAX_DIMENSIONS or not all(0 < size <= MAX_DEVICES for size in matrix):
        _refuse(path, problem)
    cuts = tuple(tuple(len(matrix) - 1 - axis for axis in entry if axis != -1) for entry in entries)
    used = [axis for cut in cuts for axis in cut]
    if len(set(used)) < len(used) or not all(0 <= axis < len(matrix) for axis in used):
        _refuse(path, problem)
    layout = TensorLayout(tuple(matrix), cuts, *shard)
    if reason := layout.describe_problem():
        _refuse(path, f"{printable(name)}: {reason}")
    return layout


def _refuse(path: Path, problem: str, *, allowed: str | None = None) -> NoReturn:
    raise BadInput(problem, where=path, allowed=allowed)


def strategies_of(files: Sequence[TargetFile], split: Split) -> dict[str, bytes]:
    """Return the strategy file of each rank whose weights are in `files`, by its name."""
    written = {}
    for rank, file in enumerate(files):
        layouts = {
            tensor.info.name: TensorLayout(
                (split.tensor,),
                tuple((0,) if number == tensor.cut else () for number in range(len(tensor.info.shape))),
            )
            for tensor in file.tensors
        }
        name = f"strategy/ckpt_strategy_rank_{rank}.ckpt"
        written[name] = encode_strategy(layouts, rank // split.tensor)
    return written


def encode_strategy(layouts: Mapping[str, TensorLayout], stage: int) -> bytes:
    """Return the strategy file of one rank of pipeline stage `stage`; without optimizer cuts."""
    current = encode_varint(_CURRENT_STAGE << 3 | VARINT) + encode_varint(stage)
    strategies = [_encode_strategy_item(name, layout, stage) for name, layout in layouts.items()]
    items = [_encode_layout_item(name, layout) for name, layout in layouts.items()]
    return current + b"".join(strategies) + b"".join(items)


def _encode_strategy_item(name: str, layout: TensorLayout, stage: int) -> bytes:
    counts = [count for _, count in layout.parts(0)]
    content = _number(_STAGE, stage) + _message(_STRATEGY, _encode_numbers(counts))
    return _message(_STRATEGY_ITEM, _message(_NAME, name.encode()) + _message(_CONTENT, content))


def _encode_layout_item(name: str, layout: TensorLayout) -> bytes:
    tensor_map = [len(layout.devices) - 1 - cut[0] if cut else -1 for cut in layout.cuts]
    content = (
        _message(_DEV_MATRIX, _encode_numbers(layout.devices))
        + _message(_TENSOR_MAP, _encode_numbers(tensor_map))
        + _message(_SPLIT_SHAPE, b"")
        + _message(_OFFSETS, b"")
        + b"".join(_number(field, 0) for field in (_FIELD, _SHARD_STEP, _SHARD_SIZE))
    )
    return _message(_LAYOUT_ITEM, _message(_NAME, name.encode()) + _message(_CONTENT, content))


def _encode_numbers(numbers: Sequence[int]) -> bytes:
    return b"".join(_number(_DIM, value) for value in numbers)


def _number(field: int, value: int) -> bytes:
    return encode_varint(field << 3 | VARINT) + encode_varint(value % (1 << 64))


def _message(field: int, content: bytes) -> bytes:
    return encode_length(field, len(content)) + content
