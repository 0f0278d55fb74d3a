"""How fast is the way from text to batches beside what people use today?

    python benchmarks/input_pipeline.py [--data FILE.jsonl --tokenizer MODEL] [--repeats 5]
        [--workers 2] [--json]

Preparing: `prepare` from a JSONL file to a store on disk, beside `datasets` with the two maps of
transformers' run_clm.py (tokenise, group_texts) from the same file, with the same tokenizer and as
many processes. The floor is the tokenizer alone, on texts that are in memory already.

Batches: `Batches` behind `prefetch`, beside grain (a random-access source of the same rows, global
shuffle, batch, prefetching threads) and beside `datasets` (shuffled, numpy) on what its
maps wrote. Ours makes five arrays, the peers one or two. The floor is a copy of tokens and targets.

Rounds alternate between the contestants; figures are medians. Without --data the text is the
documentation of Python's standard library, and the tokenizer is trained on it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

SHAPES = ((8, 256), (512, 2048))
BATCH_SECONDS = 2.0  # of iterating in each round
GROUP = 2048  # tokens of a row that run_clm makes


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", type=Path, help="JSONL file with a field `text`")
    parser.add_argument("--tokenizer", help="folder or hub id")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, tokenizer = args.data or write_text(folder), args.tokenizer
        if tokenizer is None:
            tokenizer = str(train_tokenizer(folder, data))
        rows = [measure_prepare(folder, data, tokenizer, args.workers, args.repeats)]
        rows += measure_batches(folder, args.repeats)
    print(f"{'':28}{'ours':>12}{'peer':>12}{'ratio':>8}{'floor':>12}   tokens/s")
    for row in rows:
        for peer, speed in row["peers"].items():
            figures = f"{row['ours']:12,.0f}{speed:12,.0f}{row['ours'] / speed:8.2f}"
            print(f"{row['what']:28}{figures}{row['floor']:12,.0f}   peer: {peer}")
    if args.json:
        print(json.dumps(headline(rows, args)))
    return 0


def headline(rows: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """The object that every benchmark ends with: large batches against the faster peer."""
    row = rows[-1]
    peer = max(row["peers"].values())
    settings = {
        "what": row["what"],
        "data": args.data.name if args.data else "standard library",
        "workers": args.workers,
        "repeats": args.repeats,
        "rows": rows,
    }
    return {
        "ours": row["ours"],
        "peer": peer,
        "ratio": row["ours"] / peer,
        "unit": "tokens/s",
        "settings": settings,
    }


# ------------------------------------------------------------------------------------ Preparing


def measure_prepare(
    folder: Path, data: Path, tokenizer: str, workers: int, repeats: int
) -> dict[str, Any]:
    from chopjax.data.prepare import prepare
    from chopjax.data.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    texts = [json.loads(line)["text"] for line in data.open(encoding="utf-8")]

    def ours() -> int:
        shutil.rmtree(folder / "store", ignore_errors=True)
        return prepare([data], loaded, folder / "store", workers=workers)[""].num_tokens

    def peer() -> int:
        shutil.rmtree(folder / "grouped", ignore_errors=True)
        return run_clm(data, tokenizer, folder / "grouped", workers)

    def floor() -> int:
        """All processors, inside the tokenizers library."""
        return sum(map(len, loaded.encode_batch(texts)))

    with contextlib.redirect_stderr(io_null()):
        speeds = interleaved({"ours": ours, "peer": peer, "floor": floor}, repeats)
    return {
        "what": f"prepare, {workers} processes",
        "ours": speeds["ours"],
        "peers": {"datasets, run_clm": speeds["peer"]},
        "floor": speeds["floor"],
    }


def run_clm(data: Path, tokenizer: str, out: Path, workers: int) -> int:
    """What transformers' example does; returns the tokens."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    built = AutoTokenizer.from_pretrained(tokenizer)
    built.model_max_length = 1 << 40  # no warnings about long texts
    length = GROUP

    def tokenize(examples: dict[str, list[str]]) -> Any:
        return built(examples["text"])

    def group(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {k: list(itertools.chain(*examples[k])) for k in examples}
        total = len(joined["input_ids"]) // length * length
        result = {
            k: [t[i : i + length] for i in range(0, total, length)] for k, t in joined.items()
        }
        result["labels"] = result["input_ids"].copy()
        return result

    with tempfile.TemporaryDirectory() as cache:
        raw = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=cache)
        encoded = raw.map(tokenize, batched=True, num_proc=workers, remove_columns=raw.column_names)
        grouped = encoded.map(group, batched=True, num_proc=workers)
        grouped.save_to_disk(out)
        return len(grouped) * length


# -------------------------------------------------------------------------------------- Batches


def measure_batches(folder: Path, repeats: int) -> list[dict[str, Any]]:
    from chopjax.data.store import open_store

    store = open_store(folder / "store")
    results = []
    for batch_size, length in SHAPES:
        contestants: dict[str, Callable[[], Iterator[Any]]] = {
            "ours": lambda b=batch_size, t=length: ours_batches(store, b, t),
            "floor": lambda b=batch_size, t=length: copies(b, t),
        }
        for threads in (1, 2, 16):
            contestants[f"grain, {threads} threads"] = lambda b=batch_size, t=length, n=threads: (
                grain_batches(store, b, t, n)
            )
        if length == GROUP:
            contestants["datasets"] = lambda b=batch_size: datasets_batches(folder / "grouped", b)
        runs = {name: for_a_while(it, batch_size * length) for name, it in contestants.items()}
        speeds = interleaved(runs, repeats)
        results.append(
            {
                "what": f"batches of {batch_size} x {length}",
                "ours": speeds.pop("ours"),
                "floor": speeds.pop("floor"),
                "peers": speeds,
            }
        )
    return results


def ours_batches(store: Any, batch_size: int, length: int) -> Iterator[Any]:
    from chopjax.data.batches import Batches
    from chopjax.train.feed import prefetch

    batches = Batches(store, batch_size, length, seed=1)
    return prefetch(batches.batch, itertools.count())


class GrainRows:
    """The rows of a store as grain's random-access source."""

    def __init__(self, store: Any, length: int):
        self._store, self._length = store, length

    def __len__(self) -> int:
        return (self._store.num_tokens - 1) // self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = self._store.rows(np.array([index * self._length]), self._length + 1)[0]
        return {"tokens": row[:-1], "targets": row[1:]}


def grain_batches(store: Any, batch_size: int, length: int, threads: int) -> Iterator[Any]:
    import grain

    rows = grain.MapDataset.source(GrainRows(store, length)).seed(1).shuffle().repeat()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
    iterator = iter(rows.batch(batch_size).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def datasets_batches(folder: Path, batch_size: int) -> Iterator[Any]:
    import datasets

    grouped = datasets.load_from_disk(str(folder)).with_format("numpy", columns=["input_ids"])
    for epoch in itertools.count():
        # Epochs here are shorter than one large batch: rows are drawn by index, as samplers do.
        order = np.random.default_rng(epoch).permutation(len(grouped))
        order = np.resize(order, max(batch_size, len(order)))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield grouped[order[start : start + batch_size]]


def copies(batch_size: int, length: int) -> Iterator[Any]:
    rows = np.zeros((batch_size, length), np.int32)
    while True:
        yield rows.copy(), rows.copy()


def for_a_while(make: Callable[[], Iterator[Any]], tokens: int) -> Callable[[], int]:
    """Starts anew, iterates for BATCH_SECONDS and ends what runs in the background."""

    def run() -> int:
        start, done = time.perf_counter(), 0
        with contextlib.closing(make()) as batches:  # type: ignore[type-var]
            while time.perf_counter() - start < BATCH_SECONDS:
                next(batches)
                done += 1
        return done * tokens

    return run


# ---------------------------------------------------------------------------------------- Tools


def interleaved(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Median tokens a second of each, one round of all after the other."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            tokens = run()
            speeds[name].append(tokens / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def io_null() -> Any:
    return open(os.devnull, "w")


def write_text(folder: Path) -> Path:
    from chopjax.demo.standard_library import documents

    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()))
    return path


def train_tokenizer(folder: Path, data: Path) -> Path:
    from chopjax.demo.__main__ import write_tokenizer

    texts = (json.loads(line)["text"] for line in data.open(encoding="utf-8"))
    write_tokenizer(folder / "tokenizer", texts)
    return folder / "tokenizer"


if __name__ == "__main__":
    sys.exit(main())
