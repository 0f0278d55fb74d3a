"""What import and export hold in memory, measured on real processes with a sparse checkpoint."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from launch.ports import free_port

from chopjax.checkpoint.load import load
from chopjax.models import parameters
from chopjax.models.families import translate
from chopjax.models.families.table import bind, usual_naming


def write_sparse(folder: Path, raw_config: dict) -> None:
    """A float32 checkpoint of holes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw_config))
    family, config = translate(raw_config)
    header, position = {}, 0
    for binding in bind(family, config, usual_naming(family)):
        shape = binding.row.source_shape(parameters.sizes(config))
        end = position + 4 * math.prod(shape)
        header[binding.source] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + position)


RAW_CONFIG = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 24,
    "vocab_size": 1000,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
MODEL_BYTES = 405e6
LARGEST_BYTES = 24 * 512 * 2048 * 4  # one matrix of the feed-forward, all layers

# Extra memory over what the libraries take by being imported.
MEASURE = """
import re, sys
import jax
from orbax.checkpoint import v1
from chopjax import cli
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = peak()
code = cli.main(sys.argv[1:])
print(code, peak() - before)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MEASURE, *arguments]
    # glibc's threshold grows with what is freed, and what is below it may stay: by chance.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def extra(process: subprocess.Popen[str]) -> int:
    out, _ = process.communicate(timeout=300)
    code, peak = out.split()[-2:]
    assert (process.returncode, code) == (0, "0")
    return int(peak)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """An import by two processes, and what each of them held."""
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
    return folder / "import", [extra(process) for process in processes]


def test_each_of_two_processes_holds_its_half(imported: tuple[Path, list[int]]) -> None:
    folder, extras = imported
    # Half the model, one shard on its way, and the buffers of the write and of the collectives.
    assert max(extras) < 0.5 * MODEL_BYTES + LARGEST_BYTES / 2 + 100e6
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".chopjax.json", "chopjax_folder.json", "huggingface", "params"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["import", "model"]


def test_export_holds_one_parameter(imported: tuple[Path, list[int]], tmp_path: Path) -> None:
    folder, _ = imported
    # The parameter, the file's bytes while they are read, and those of the last one until then.
    peak = extra(start("export", str(folder), str(tmp_path / "out")))
    assert peak < 2.5 * LARGEST_BYTES < MODEL_BYTES
    assert load(str(tmp_path / "out"), keep=(0,)).config.num_layers == 1
