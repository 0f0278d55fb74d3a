"""How fast is `chopjax chop` beside `cp` of the same bytes?

    python benchmarks/chop.py [--width 3072] [--rounds 5] [--folder DIR] [--json]

A bfloat16 checkpoint of random bytes in the shape of Llama-2-7B (32 layers; at width 4096 it is
that model, 13 GB, at 3072 it has 7.7 GB) is halved with the strategy `max-gap`, which leaves the
most gaps to skip. The peer is `cp -r` of a folder that holds exactly the kept bytes. Both are whole
processes, start-up included; both write a new folder in every round, flush it to the disk before
they end (cp by `sync FILE…`, chopjax by itself), and find their input in the page cache. Rounds
swap the order; figures are medians. Takes 16 GB of disk, and as much memory for the page cache.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS = 32


def write_parent(folder: Path, width: int) -> None:
    """Llama-2-7B but for its width."""
    from chopjax.models import parameters
    from chopjax.models.families import table, translate

    raw = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": width * 43 // 16,
        "num_attention_heads": width // 128,
        "num_hidden_layers": LAYERS,
        "vocab_size": 32000,
        "torch_dtype": "bfloat16",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw, indent=2))
    family, config = translate(raw)
    sizes = parameters.sizes(config)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for binding in table.bind(family, config, table.usual_naming(family)):
        shape = binding.row.source_shape(sizes)
        end = position + 2 * math.prod(shape)
        offsets = [position, end]
        header[binding.source] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
        position = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    noise = os.urandom(1 << 24)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        while position > 0:
            position -= file.write(noise[: min(position, len(noise))])


def warm(folder: Path) -> None:
    """Read every file into the page cache."""
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def timed(command: list[str]) -> tuple[float, float, int]:
    """Seconds of wall time, seconds of CPU time and the peak resident bytes of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    elapsed = time.perf_counter() - start
    return elapsed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--width", type=int, default=3072, help="hidden size of the parent")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of either")
    parser.add_argument(
        "--folder", type=Path, help="where to write (default: the temporary folder)"
    )
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        result = measure(folder, arguments.width, arguments.rounds)
    print(f"chopjax chop  {result['ours']:.3f} GB/s, peak memory {result['peak_memory_mb']:.0f} MB")
    print(f"cp -r, sync   {result['peer']:.3f} GB/s")
    print(f"ratio         {result['ratio']:.3f}")
    if arguments.json:
        print(json.dumps(result))


def measure(folder: Path, width: int, rounds: int) -> dict[str, object]:
    parent, kept, out = folder / "parent", folder / "kept", folder / "out"
    write_parent(parent, width)
    chop = [sys.executable, "-m", "chopjax.cli", "chop", str(parent), str(out)]
    chop += "--strategy max-gap --remove 50%".split()
    timed(chop)
    out.rename(kept)
    copy = ["sh", "-c", f"cp -r {kept} {out} && sync {out}/* {out}"]
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    cpu: dict[str, list[float]] = {"ours": [], "peer": []}
    memory = 0
    for index in range(rounds):
        for who in ("ours", "peer") if index % 2 else ("peer", "ours"):
            warm(parent if who == "ours" else kept)
            elapsed, busy, peak = timed(chop if who == "ours" else copy)
            seconds[who].append(round(elapsed, 4))
            cpu[who].append(round(busy, 4))
            memory = max(memory, peak if who == "ours" else 0)
            shutil.rmtree(out)
        print(
            f"round {index + 1}: ours {seconds['ours'][-1]:.3f} s, cp {seconds['peer'][-1]:.3f} s"
        )
    nbytes = sum(path.stat().st_size for path in kept.iterdir())
    ours, peer = (nbytes / 1e9 / statistics.median(seconds[who]) for who in ("ours", "peer"))
    return {
        "benchmark": "chop",
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "ratio": round(ours / peer, 4),
        "unit": "GB/s",
        "peak_memory_mb": round(memory / 1e6, 1),
        "settings": {
            "kept_bytes": nbytes,
            "rounds": rounds,
            "fsync": "both",
            "cache": "warm",
            "file_system": _file_system(folder),
            "seconds": seconds,
            "cpu_seconds": cpu,
        },
    }


def _file_system(folder: Path) -> str:
    found = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
