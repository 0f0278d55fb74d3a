"""A process with eight fake devices scores with quantized weights that lie split over four of them.
Prints one JSON object. Run by test_model.py, in whose folder lie the model and quantized ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chopjax.models.formats import FORMATS, Kind
from chopjax.score.engine import Engine
from chopjax.score.model import open_engine

# Every device has whole blocks of the inputs.
MODEL: dict[str, Any] = {
    "family": "llama",
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
}
STORED: tuple[Kind, ...] = ("int4", "int8")
REQUESTS = [([3, 5, 8], [9, 4, 4, 7])]


def engine_of(folder: Path, kind: Kind, fsdp: int = 1, tensor: int = 1) -> Engine:
    return open_engine(str(folder / "m"), None, "float32", None, 8, fsdp, tensor, kind)[1]


def score(engine: Engine) -> float:
    return float(engine.loglikelihood(REQUESTS)[0][0])


def parts(engine: Engine) -> int:
    """In how many different parts the codes of a matrix lie."""
    codes = engine.params["blocks"]["mlp"]["up"].codes
    return len({str(shard.index) for shard in codes.addressable_shards})


def main(folder: Path) -> dict[str, Any]:
    assert len(jax.devices()) == 8
    engines = {kind: engine_of(folder, kind, fsdp=2, tensor=2) for kind in FORMATS}
    same = {}
    for kind in STORED:
        _, read = open_engine(str(folder / kind), dtype="float32", fsdp=2, tensor=2)
        equal = jax.tree.map(np.array_equal, read.params, engines[kind].params)
        same[kind] = all(jax.tree.leaves(equal))
    return {
        "scores": {kind: score(engine) for kind, engine in engines.items()},
        "split": {kind: parts(engine) for kind, engine in engines.items()},
        "same": same,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
