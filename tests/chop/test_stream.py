"""Chopping a checkpoint into a checkpoint, held against transformers and against the kernel."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from checkpoints import random_model, write_checkpoint, write_tokenizer

from chopjax import cli
from chopjax.checkpoint.open import open_checkpoint
from chopjax.chop.stream import chop_checkpoint
from chopjax.errors import UserError
from chopjax.models import parameters
from chopjax.models.families import table, translate


def chop(source: Path, out: Path, keep: tuple[int, ...], **options):
    return chop_checkpoint(open_checkpoint(str(source)), keep, out, "keep", {}, **options)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in safetensors.torch.load_file(file).items()
    }


def delete_by_hand(model, keep):
    """What people do to a model of transformers, layer indices mended."""
    base = model.base_model
    owner = getattr(base, "decoder", base)
    name = "h" if hasattr(owner, "h") else "layers"
    kept = [getattr(owner, name)[layer] for layer in keep]
    setattr(owner, name, torch.nn.ModuleList(kept))
    for index, block in enumerate(kept):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    model.config.num_hidden_layers = len(keep)
    return model


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("gpt2", {}),
        ("opt", {}),
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    ],
)
def test_same_logits_as_layers_deleted_by_hand(tmp_path, family, options):
    model = random_model(family, num_hidden_layers=6, **options)
    model.save_pretrained(tmp_path / "parent")
    keep = (0, 3, 5)
    chop(tmp_path / "parent", tmp_path / "chopped", keep)
    chopped = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "chopped", attn_implementation="eager"
    ).eval()
    assert chopped.config.num_hidden_layers == 3
    tokens = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = chopped(tokens, use_cache=False).logits
        cached = chopped(tokens[:, 20:], past_key_values=chopped(tokens[:, :20]).past_key_values)
        expected = delete_by_hand(model, keep)(tokens, use_cache=False).logits
    assert torch.equal(found, expected)
    assert torch.allclose(cached.logits, expected[:, 20:], atol=1e-5)  # caches go by layer_idx


def test_bytes_names_and_files(tmp_path):
    parent = write_checkpoint(tmp_path / "parent", dtype=torch.bfloat16)
    write_tokenizer(parent)
    (parent / "modeling_evil.py").write_text("raise SystemExit")
    (parent / "pytorch_model.bin").write_bytes(b"pickle")
    (parent / "README.md").write_text("of the parent")
    keep = (1, 3)
    report = chop(parent, tmp_path / "chopped", keep)
    before, after = tensors(parent), tensors(tmp_path / "chopped")
    names = {
        name.replace(".layers.1.", ".layers.0.").replace(".layers.3.", ".layers.1."): name
        for name in before
        if ".layers.0." not in name and ".layers.2." not in name
    }
    assert set(after) == set(names)
    assert all(torch.equal(after[new], before[old]) for new, old in names.items())
    assert report.after.bytes == sum(t.nbytes for t in after.values())
    assert report.before.parameters == sum(t.numel() for t in before.values())
    assert report.after.parameters == sum(t.numel() for t in after.values())
    found = {path.name for path in (tmp_path / "chopped").iterdir()}
    copied = {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    own = {"README.md", "PARENT_README.md", ".chopjax.json", "config.json", "chopjax.json"}
    assert found == copied | own | {"model.safetensors"}
    assert (tmp_path / "chopped" / "PARENT_README.md").read_text() == "of the parent"
    for name in copied:
        assert (tmp_path / "chopped" / name).read_bytes() == (parent / name).read_bytes()
    with safetensors.safe_open(tmp_path / "chopped" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_and_index(tmp_path):
    parent = write_checkpoint(tmp_path / "parent", max_shard_size="40KB")
    chop(parent, tmp_path / "chopped", (0, 2), max_shard_bytes=30_000)
    index = json.loads((tmp_path / "chopped" / "model.safetensors.index.json").read_text())
    after = tensors(tmp_path / "chopped")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in after.values())
    assert set(index["weight_map"]) == set(after)
    files = sorted((tmp_path / "chopped").glob("*.safetensors"))
    assert len(files) > 2
    assert [f.name for f in files] == [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
    ]
    for file in files:
        held = safetensors.torch.load_file(file)
        assert sum(t.nbytes for t in held.values()) <= 30_000
        assert all(index["weight_map"][name] == file.name for name in held)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "chopped")


def test_buffers_and_tied_duplicates_come_along(tmp_path):
    parent = write_checkpoint(tmp_path / "parent", "gpt2")
    held = tensors(parent)
    held["lm_head.weight"] = held["transformer.wte.weight"].clone()
    for layer in range(4):
        held[f"transformer.h.{layer}.attn.bias"] = torch.full((1, 1, 4, 4), float(layer))
    safetensors.torch.save_file(held, parent / "model.safetensors", {"format": "pt"})
    chop(parent, tmp_path / "chopped", (0, 3))
    after = tensors(tmp_path / "chopped")
    assert torch.equal(after["lm_head.weight"], after["transformer.wte.weight"])
    assert [after[f"transformer.h.{layer}.attn.bias"].max().item() for layer in range(2)] == [0, 3]
    assert "transformer.h.2.attn.bias" not in after


def test_chopping_again_composes(tmp_path):
    parent = write_checkpoint(tmp_path / "parent", num_hidden_layers=8)
    assert cli.main(f"chop {parent} {tmp_path}/a --strategy input --remove 3".split()) == 0
    assert cli.main(f"chop {tmp_path}/a {tmp_path}/b --strategy both --remove 2".split()) == 0
    chop(parent, tmp_path / "once", (0, 5, 7))
    twice, once = tensors(tmp_path / "b"), tensors(tmp_path / "once")
    assert set(twice) == set(once)
    assert all(torch.equal(twice[name], once[name]) for name in once)
    record = json.loads((tmp_path / "b" / "chopjax.json").read_text())
    assert record["kept_layers"] == [0, 5, 7]
    assert record["parent"] == {"name": str(parent), "revision": None, "num_layers": 8}
    assert [step["kept_layers"] for step in record["history"]] == [[0, 4, 5, 6, 7], [0, 2, 4]]
    assert [step["settings"] for step in record["history"]] == [{"remove": 3}, {"remove": 2}]


@pytest.mark.parametrize("keep", [(), (0, 4), (1, 0), (0, 0), (-1, 0)])
def test_impossible_keep_lists(tmp_path, keep):
    parent = write_checkpoint(tmp_path / "parent")
    with pytest.raises(UserError, match=r"not a keep list.*layers 0-3"):
        chop(parent, tmp_path / "chopped", keep)
    assert not (tmp_path / "chopped").exists()


# --- large checkpoints, written sparse -------------------------------------------------------


def write_sparse(folder: Path, layers: int, dim: int, mlp: int) -> dict[str, tuple[int, int]]:
    """A bfloat16 Llama checkpoint of holes, layer after layer; returns name → bytes from, to."""
    folder.mkdir()
    raw = {
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": mlp,
        "num_attention_heads": 16,
        "num_hidden_layers": layers,
        "vocab_size": 1000,
    }
    (folder / "config.json").write_text(json.dumps(raw))
    family, config = translate(raw)
    sizes = parameters.sizes(config)
    header: dict[str, Any] = {}
    position = 0
    bindings = table.bind(family, config, table.usual_naming(family))
    for binding in sorted(bindings, key=lambda b: -1 if b.layer is None else b.layer):
        shape = binding.row.source_shape(sizes)
        end = position + 2 * int(torch.Size(shape).numel())
        header[binding.source] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [position, end],
        }
        position = end
    encoded = json.dumps(header).encode()
    start = 8 + len(encoded)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(start + position)
    return {
        name: (start + entry["data_offsets"][0], start + entry["data_offsets"][1])
        for name, entry in header.items()
    }


MEASURE = """
import re, sys
from chopjax import cli
code = cli.main(sys.argv[1:])
loaded = [m for m in ("jax", "flax", "transformers", "orbax", "torch") if m in sys.modules]
peak_kib = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(code, peak_kib, *loaded, file=sys.stderr)
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """8.5 GB: at most 200 MB in all, though the largest tensor would be allowed on top."""
    places = write_sparse(tmp_path / "parent", layers=84, dim=2048, mlp=5504)
    weights = tmp_path / "parent" / "model.safetensors"
    assert weights.stat().st_size > 8e9
    name = "model.layers.83.mlp.down_proj.weight"
    low, high = places[name]
    with weights.open("r+b") as file:
        for position in (low, high - 2):
            file.seek(position)
            file.write(b"\x12\x34")
    done = subprocess.run(
        [
            *(sys.executable, "-c", MEASURE, "chop", tmp_path / "parent", tmp_path / "out"),
            *"--strategy input --remove 82 --json".split(),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    code, peak_kib, *loaded = done.stderr.splitlines()[-1].split()
    assert code == "0"
    assert not loaded
    assert int(peak_kib) * 1024 < 200e6
    assert json.loads(done.stdout)["after"]["layers"] == 2
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        kept = file.get_slice("model.layers.1.mlp.down_proj.weight")
        assert kept.get_shape() == [2048, 5504]
    out = open_checkpoint(str(tmp_path / "out"))
    array = out.array("model.layers.1.mlp.down_proj.weight").reshape(-1).view("u2")
    assert (array[0], array[-1], array.sum()) == (0x3412, 0x3412, 2 * 0x3412)
    del array
    shutil.rmtree(tmp_path / "out")  # 200 MB of zeros


def resident(path: Path) -> list[bool]:
    """Whether each page of a file is in memory, as the kernel says (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        pages = -(-len(view) // mmap.PAGESIZE)
        answer = (ctypes.c_ubyte * pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(view)), answer):
            raise OSError(ctypes.get_errno(), "mincore")
        found = [bool(byte & 1) for byte in answer]
        del address
    return found


def test_removed_tensors_are_never_read(tmp_path, monkeypatch):
    """After dropping the file from the page cache, only what the chop read comes back to it."""
    asked = []
    read = os.preadv

    def recorded(file, buffers, offset):
        asked.append((offset, offset + sum(map(len, buffers))))
        return read(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", recorded)
    places = write_sparse(tmp_path / "parent", layers=16, dim=512, mlp=1376)
    weights = tmp_path / "parent" / "model.safetensors"
    with weights.open("r+b") as file:
        data_start = min(low for low, _ in places.values())
        file.seek(data_start)
        while file.tell() < weights.stat().st_size:
            file.write(os.urandom(min(1 << 20, weights.stat().st_size - file.tell())))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if sum(resident(weights)) > 64:
        pytest.skip("this file system does not let go of its pages")
    chop(tmp_path / "parent", tmp_path / "chopped", (0, 15))
    pages = resident(weights)

    def pages_of(layer: int) -> list[bool]:
        ranges = [p for name, p in places.items() if f".layers.{layer}." in name]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        return pages[low // mmap.PAGESIZE + 1 : high // mmap.PAGESIZE]

    for layer in (0, 15):  # reading shows, though the kernel may let go of a page at any time
        assert any(pages_of(layer))
    # The kernel reads ahead past layer 0, 8 MB on some machines; a layer here has 6.
    assert not any(any(pages_of(layer)) for layer in range(8, 15))
    gone = [p for name, p in places.items() if any(f".{i}." in name for i in range(1, 15))]
    assert asked
    assert not any(low < end and start < high for start, end in asked for low, high in gone)


# --- interruptions ---------------------------------------------------------------------------

SLOW = """
import os, sys, time
from chopjax import cli
read = os.preadv
def slowly(*arguments):
    print("copying", flush=True)
    time.sleep(0.2)
    return read(*arguments)
os.preadv = slowly
sys.exit(cli.main(sys.argv[1:]))
"""


def start_slow_chop(parent: Path, out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "chop", parent, out, "--keep", "0,3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "copying\n"
    return process


def test_ctrl_c_leaves_nothing(tmp_path):
    parent = write_checkpoint(tmp_path / "parent")
    process = start_slow_chop(parent, tmp_path / "new" / "out")
    assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new" / "out").exists()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_what_a_kill_leaves_is_cleared_by_the_next_run(tmp_path):
    parent = write_checkpoint(tmp_path / "parent")
    process = start_slow_chop(parent, tmp_path / "out")
    process.kill()
    process.communicate()
    assert not (tmp_path / "out").exists()
    chop(parent, tmp_path / "out", (0, 3))
    assert {path.name for path in tmp_path.iterdir()} == {"parent", "out"}


LIMITED = """
import resource, sys
from chopjax import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path):
    parent = write_checkpoint(tmp_path / "parent")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "chop", parent, tmp_path / "out", "--keep", "0,3"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_existing_output_stays(tmp_path):
    parent = write_checkpoint(tmp_path / "parent")
    chop(parent, tmp_path / "out", (0, 3))
    stamp = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    time.sleep(0.01)
    with pytest.raises(UserError, match="exists"):
        chop(parent, tmp_path / "out", (0,))
    with pytest.raises(UserError, match="would delete"):
        chop(parent, parent, (0,), overwrite=True)
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == stamp
    chop(parent, tmp_path / "out", (0,), overwrite=True)
    assert len(tensors(tmp_path / "out")) < len(tensors(parent)) / 2
