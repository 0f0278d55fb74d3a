"""A process with eight fake devices scores with quantized weights that lie split over four of them.
Prints one JSON object. Run by test_model.py."""

from __future__ import annotations

import json
import sys
from typing import Any

import jax

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
REQUESTS = [([3, 5, 8], [9, 4, 4, 7])]


def scores(folder: str) -> dict[str, float]:
    return {kind: _score(_engine(folder, kind)) for kind in FORMATS}


def _engine(folder: str, kind: Kind, fsdp: int = 1, tensor: int = 1) -> Engine:
    return open_engine(folder, None, "float32", None, 8, fsdp, tensor, kind)[1]


def _score(engine: Engine) -> float:
    return float(engine.loglikelihood(REQUESTS)[0][0])


def parts(engine: Engine) -> int:
    """In how many different parts the codes of a matrix lie."""
    codes = engine.params["blocks"]["mlp"]["up"].codes
    return len({str(shard.index) for shard in codes.addressable_shards})


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    made, split = {}, {}
    for kind in FORMATS:
        engine = _engine(sys.argv[1], kind, fsdp=2, tensor=2)
        made[kind], split[kind] = _score(engine), parts(engine)
    print(json.dumps({"scores": made, "split": split}))
