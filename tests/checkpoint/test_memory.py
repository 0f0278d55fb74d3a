"""What import and export read and hold in memory, measured on real processes with a sparse
checkpoint."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from launch.ports import free_port

from chopjax.checkpoint.load import load
from chopjax.models import parameters
from chopjax.models.families import translate
from chopjax.models.families.table import bind, usual_naming


def write_sparse(folder: Path, raw_config: dict) -> None:
    """A float32 checkpoint of holes, but for layer 0."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw_config))
    family, config = translate(raw_config)
    header: dict[str, Any] = {}
    position, draw = 0, np.random.default_rng(0)
    for binding in bind(family, config, usual_naming(family)):
        shape = binding.row.source_shape(parameters.sizes(config))
        end = position + 4 * math.prod(shape)
        header[binding.source] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + position)
        for name, place in header.items():
            if ".layers.0." in name:
                start, end = place["data_offsets"]
                file.seek(8 + len(encoded) + start)
                file.write(draw.random((end - start) // 4, np.float32).tobytes())


RAW_CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "head_dim": 8,
    "num_hidden_layers": 24,
    "vocab_size": 1000,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
MODEL_BYTES = 4 * (24 * 4096 * (2 + 4 * 64 + 3 * 256) + 4096 * (1 + 1000))
LARGEST_BYTES = 24 * 256 * 4096 * 4  # one matrix of the feed-forward, all layers
# Rows of 16 kB: a process skips half of them, more than a page.

# Bytes of weights that were read, and extra memory over what the libraries take by being imported.
MEASURE = """
import os, re, sys
import jax
from orbax.checkpoint import v1
from chopjax import cli
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
preadv, count = os.preadv, 0
def counted(*arguments):
    global count
    came = preadv(*arguments)
    count += came
    return came
os.preadv = counted
before = peak()
code = cli.main(sys.argv[1:])
print(code, count, peak() - before)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MEASURE, *arguments]
    # glibc's threshold grows with what is freed, and what is below it may stay: by chance.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


class Measured(NamedTuple):
    read: int  # bytes of weights
    extra: int  # bytes of memory


def finish(process: subprocess.Popen[str]) -> Measured:
    out, _ = process.communicate(timeout=300)
    code, read, peak = out.split()[-3:]
    assert (process.returncode, code) == (0, "0")
    return Measured(int(read), int(peak))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Measured]]:
    """An import by two processes, and what it took of each of them."""
    folder = tmp_path_factory.mktemp("memory")
    write_sparse(folder / "model", RAW_CONFIG)
    port = free_port()
    processes = [
        start(
            *("import", str(folder / "model"), str(folder / "import")),
            *("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(i)),
        )
        for i in range(2)
    ]
    return folder / "import", [finish(process) for process in processes]


def test_each_of_two_processes_reads_and_holds_its_half(
    imported: tuple[Path, list[Measured]],
) -> None:
    folder, measured = imported
    # Every tensor has the axis that is split; only what no rule splits would be read twice.
    assert [each.read for each in measured] == [MODEL_BYTES // 2] * 2
    # Half the model, one shard on its way, and the buffers of the write and of the collectives.
    most = max(each.extra for each in measured)
    assert most < 0.5 * MODEL_BYTES + LARGEST_BYTES / 2 + 100e6
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".chopjax.json", "chopjax_folder.json", "huggingface", "params"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["import", "model"]


def test_export_holds_one_parameter(imported: tuple[Path, list[Measured]], tmp_path: Path) -> None:
    folder, _ = imported
    # The parameter, the file's bytes while they are read, and those of the last one until then.
    peak = finish(start("export", str(folder), str(tmp_path / "out"))).extra
    assert peak < 2.5 * LARGEST_BYTES < MODEL_BYTES
    before, after = (
        load(str(path), keep=(0,)) for path in (folder.parent / "model", tmp_path / "out")
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, before.params, after.params))
