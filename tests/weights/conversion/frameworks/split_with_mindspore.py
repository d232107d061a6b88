"""Let MindSpore merge rank folders of ours, and split a whole checkpoint for us to merge.

Arguments: a folder with merge/CASE/{rank_N, strategy} of ours, and split/CASE.json with the strategies to
split split/whole for. Writes merge/CASE.npz and split/CASE/{rank_N, strategy}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore.train.node_strategy_pb2 import ParallelStrategyMap


def merge(case: Path) -> None:
    strategy = str(case / "merged_strategy.ckpt")
    ms.merge_pipeline_strategys(str(case / "strategy"), strategy)
    ms.transform_checkpoints(str(case), str(case / "whole"), "whole", strategy, None)
    (file,) = (case / "whole").rglob("*.ckpt")
    arrays = {name: value.asnumpy() for name, value in ms.load_checkpoint(str(file)).items()}
    np.savez(case.with_suffix(".npz"), **arrays)


def write_strategy(path: Path, layouts: dict[str, dict[str, list[int] | int]]) -> None:
    message = ParallelStrategyMap(current_stage=1)
    for name, keys in layouts.items():
        item = message.parallel_strategy_item.add(node_name=name)
        item.parallel_strategys.stage = 0
        item.parallel_strategys.parallel_strategy.add().dim.extend(keys["devices"])
        layout = message.parallel_layout_item.add(param_name=name).parallel_layouts
        layout.dev_matrix.add().dim.extend(keys["devices"])
        layout.tensor_map.add().dim.extend(keys["map"])
        layout.param_split_shape.add()
        layout.indices_offset.add()
        layout.field = 0
        layout.opt_weight_shard_step = keys["step"]
        layout.opt_weight_shard_size = keys["size"]
    path.parent.mkdir(parents=True)
    path.write_bytes(message.SerializeToString())


def split(case: Path) -> None:
    folder = case.with_suffix("")
    strategy = folder / "strategy" / "ckpt_strategy_rank_0.ckpt"
    write_strategy(strategy, json.loads(case.read_text()))
    ms.transform_checkpoints(str(case.parent / "whole"), str(folder), "part", None, str(strategy))


def main() -> None:
    root = Path(sys.argv[1])
    for case in sorted((root / "merge").iterdir()):
        merge(case)
    for case in sorted((root / "split").glob("*.json")):
        split(case)


main()
