"""How many documents a second does the scorer answer beside lm-evaluation-harness's hf backend?

    python benchmarks/score.py --data DIR [--model DIR | --shape NAME --tokenizer DIR]
        [--tasks hellaswag,arc_easy,piqa,winogrande,mmlu] [--limit N] [--batch-sizes 1,8,32]
        [--rounds 3] [--dtype float32] [--device cpu] [--alone] [--json]
    python benchmarks/score.py --data DIR --model DIR --against-float32 [--tasks LIST] [--limit N]
        [--batch-sizes 32] [--json]

DIR holds TASK/SPLIT.jsonl as score_tasks.py says. Both sides get the same checkpoint, the same
tasks and documents, and the harness's own evaluate(): what is timed is that whole call, from
building prompts to metrics, once models and datasets are loaded. Ours compiles in a first run,
which is reported apart. The peer first runs at each of --batch-sizes; the rounds are at the best of
them. (`auto` on a CPU takes 64 without a measurement: the harness looks for the largest batch that
does not run out of memory.) Rounds alternate; speeds are medians, ratios medians of those of the
rounds. `CPU` is the same ratio of processor time, which is what a busy machine leaves to measure;
there, pin the process to one processor (`taskset -c 0`), so that no thread of the peer's spins
while it waits for another. Each row also gives the largest difference of a request's log-likelihood
and whether is_greedy and all metrics agree. --alone: the ratio of processor time, too, when we
share no tokens between requests.

The floor is what nobody can leave out: every distinct token of the requests' prefix tree through
the blocks, one row of logits for every distinct place that is scored, at the rate of this machine's
large matrix products.

--shape makes random weights in the proportions of a published model, with a real tokenizer.
--against-float32: what bfloat16 changes of our float32, request by request and in the metrics, of
ours and of the peer at the last of --batch-sizes, with its softmax in float32, too; no speeds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import jax.numpy as jnp
import lm_eval.evaluator
import numpy as np
from random_checkpoint import write_checkpoint
from score_tasks import TASKS, ZERO_SHOT, write_tasks

from chopjax.models.config import ModelConfig
from chopjax.models.flops import matmul_parameters
from chopjax.models.linear import linear
from chopjax.score import planning
from chopjax.score.harness import ChopjaxLM
from chopjax.score.model import open_engine
from chopjax.score.planning import Request, distinct_paths, shared_lengths
from chopjax.score.tasks import Tasks, load_tasks

SHAPES = {
    "smollm-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "1b": {  # TinyLlama-1.1B
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "tiny": {  # for rehearsals
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=Path, help="folder with TASK/SPLIT.jsonl")
    add("--model", help="folder of a checkpoint; random weights of --shape by default")
    add("--shape", choices=SHAPES, default="smollm-135m")
    add("--layers", type=int, help="of --shape; the published number by default")
    add("--tokenizer", type=Path, help="folder of a tokenizer, for --shape")
    add("--tasks", default=",".join(TASKS), help="separated by commas (default: %(default)s)")
    add("--limit", type=int, default=200, help="documents of each task (default: %(default)s)")
    add("--batch-sizes", default="1,8,32", help="of the peer, to choose from")
    add("--rounds", type=int, default=3)
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of both sides")
    add("--alone", action="store_true", help="ours once more, no tokens shared")
    add("--against-float32", action="store_true", help="what bfloat16 changes")
    add("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    names = args.tasks.split(",")
    if unknown := set(names) - set(TASKS):
        parser.error(f"--tasks: {', '.join(sorted(unknown))}: choose from {', '.join(TASKS)}")
    if args.data is None or not args.data.is_dir():
        files = sorted({f"DIR/{file}" for name in names for file in TASKS[name].files})
        parser.error(f"--data DIR is needed, a folder with {', '.join(files)}")
    if args.model is None and args.tokenizer is None:
        parser.error("--model or --tokenizer is needed")
    jax.config.update("jax_platforms", args.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = SHAPES[args.shape]
        if args.layers:
            shape = shape | {"num_hidden_layers": args.layers}
        model = args.model or str(write_random(folder / "model", args.tokenizer, shape, args.dtype))
        tasks = {task: read_tasks(folder, args.data, task, args.limit) for task in names}
        if args.against_float32:
            return against_float32(model, tasks, args)
        return against_peer(model, tasks, args)


def read_tasks(folder: Path, data: Path, name: str, limit: int) -> Tasks:
    include, tasks = write_tasks(folder / name, data, name, limit)
    return load_tasks(tasks, include, TASKS[name].shots)


def against_peer(model: str, tasks: dict[str, Tasks], args: argparse.Namespace) -> int:
    ours = open_ours(model, args.dtype)
    peer = open_peer(model, args.dtype, args.device)
    rates = matmul_rates(ours.engine.compute.dtype)
    rate = max(rates.values())
    head = f"{model_line(ours, args)}, {args.dtype}, {jax.devices()[0].device_kind}"
    products = ", ".join(f"{name} {made / 1e9:,.0f}" for name, made in rates.items())
    print(f"{head}; matrix products, GFLOP/s: {products}; {processor()}")
    rows = []
    for name, group in tasks.items():
        rows.append(measure(name, group, ours, peer, rate, args))
        print_row(rows[-1], first=len(rows) == 1)
    zero_shot = [row for row in rows if row["task"] in ZERO_SHOT]
    if len(zero_shot) > 1:
        rows.append(mix(zero_shot))
        print_row(rows[-1])
    if args.json:
        headline = rows[-1]
        print(
            json.dumps(
                {
                    "ours": headline["ours"],
                    "peer": headline["peer"],
                    "ratio": headline["ratio"],
                    "unit": f"documents/s, {headline['task']}",
                    "rows": rows,
                    "settings": {**vars(args), "data": str(args.data), "model": args.model}
                    | {"tokenizer": args.tokenizer and str(args.tokenizer)},
                    "flops_per_second": rates,
                }
            )
        )
    return 0


def measure(
    name: str, group: Tasks, ours: ChopjaxLM, peer: Any, rate: float, args: argparse.Namespace
) -> dict[str, Any]:
    before = ours.engine.statistics.compile_seconds, ours.engine.statistics.programs
    first, answers = timed(ours, group)
    compiling = ours.engine.statistics.compile_seconds - before[0]
    programs = ours.engine.statistics.programs - before[1]
    sizes: dict[str, Seconds] = {}
    theirs: Any = None
    for size in args.batch_sizes.split(","):
        set_batch_size(peer, size)
        sizes[size], theirs = timed(peer, group)
    clock = "cpu" if jax.default_backend() == "cpu" else "wall"
    best = min(sizes, key=lambda size: getattr(sizes[size], clock))
    set_batch_size(peer, best)
    sides: dict[str, list[Seconds]] = {"ours": [], "peer": []}
    if args.alone:
        with nothing_shared():
            timed(ours, group)  # compiles
        sides["alone"] = []
    for number in range(args.rounds):
        sides["ours"].append(timed(ours, group)[0])
        if args.alone:
            with nothing_shared():
                sides["alone"].append(timed(ours, group)[0])
        # The choice of the batch size was a measurement, too.
        sides["peer"].append(timed(peer, group)[0] if number else sizes[best])
    requests = token_requests(ours, answers)
    flops, tokens, scores = least(ours.engine.config, ours.max_length, requests)
    docs = sum(len(samples) for samples in answers["samples"].values())
    return {
        "task": name,
        "documents": docs,
        "requests": len(requests),
        **{side: docs / statistics.median(t.wall for t in times) for side, times in sides.items()},
        "ratio": ratio(sides["peer"], sides["ours"], "wall"),
        "cpu_ratio": ratio(sides["peer"], sides["ours"], "cpu"),
        **({"alone_ratio": ratio(sides["peer"], sides["alone"], "cpu")} if args.alone else {}),
        "per_cpu_second": {
            side: docs / statistics.median(t.cpu for t in times) for side, times in sides.items()
        },
        "floor": docs * rate / flops,
        "batch_size": best,
        "seconds": {**sides, "peer by batch size": sizes},
        "compile": {"seconds": compiling, "programs": programs, "first run": first},
        "tokens": {"least": tokens, "scored places": scores}
        | {"ours": ours.engine.plan(requests).slots, "requests": sum_of_lengths(requests)},
        "agreement": agreement(answers, theirs),
    }


class Seconds(NamedTuple):
    wall: float
    cpu: float  # of all threads


def timed(lm: Any, group: Tasks) -> tuple[Seconds, dict[str, Any]]:
    with contextlib.redirect_stderr(io.StringIO()):  # bars
        begun, worked = time.perf_counter(), time.process_time()
        answers = lm_eval.evaluator.evaluate(lm, dict(group), log_samples=True)
    return Seconds(time.perf_counter() - begun, time.process_time() - worked), answers


def ratio(them: list[Seconds], us: list[Seconds], clock: str) -> float:
    """How many times as fast we are: the median over the rounds."""
    pairs = zip(them, us, strict=True)
    return statistics.median(getattr(t, clock) / getattr(o, clock) for t, o in pairs)


def nothing_shared() -> contextlib.AbstractContextManager[Any]:
    """Every distinct request reads all of its tokens by itself."""
    return mock.patch.object(planning, "shared_lengths", lambda paths: [0] * len(paths))


def processor() -> str:
    """What kind, how many of them this process may use, and what else wants them."""
    kind = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    used = len(os.sched_getaffinity(0))
    return f"{kind[1] if kind else 'processor'} x {used}, load {os.getloadavg()[0]:.0f}"


def set_batch_size(peer: Any, size: str) -> None:
    peer.batch_size_per_gpu = size if size == "auto" else int(size)


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Request by request and metric by metric; metrics agree within 1e-6."""
    differences = np.array([abs(a[0] - b[0]) for a, b in zip_answers(ours, theirs)])
    greedy = [a[1] == b[1] for a, b in zip_answers(ours, theirs)]
    pairs = {
        f"{task} {name}": (ours["results"][task][name], value)
        for task, values in theirs["results"].items()
        for name, value in values.items()
        if isinstance(value, float)
    }
    return {
        "nats": {
            "median": float(np.median(differences)),
            "99 %": float(np.quantile(differences, 0.99)),
            "largest": float(differences.max()),
        },
        "is_greedy differs": greedy.count(False),
        "metrics": len(pairs),
        "metrics differ": {n: p for n, p in pairs.items() if abs(p[0] - p[1]) > 1e-6},
    }


def zip_answers(ours: dict[str, Any], theirs: dict[str, Any]) -> Any:
    for task, samples in ours["samples"].items():
        for mine, other in zip(samples, theirs["samples"][task], strict=True):
            for (answer,), (expected,) in zip(mine["resps"], other["resps"], strict=True):
                yield answer, expected


def token_requests(ours: ChopjaxLM, answers: dict[str, Any]) -> list[Request]:
    samples = [sample for part in answers["samples"].values() for sample in part]
    texts = [tuple(pair) for sample in samples for pair in sample["arguments"]]
    return list(ours.encoder.pairs(texts))


def sum_of_lengths(requests: Sequence[Request]) -> int:
    return sum(len(context) + len(continuation) - 1 for context, continuation in requests)


def least(
    config: ModelConfig, max_length: int, requests: Sequence[Request]
) -> tuple[float, int, int]:
    """(FLOPs, tokens, places whose logits are needed) of the requests' prefix tree."""
    paths = distinct_paths(requests, max_length)
    tokens = looked_at = 0
    for path, shared in zip(paths, shared_lengths(paths), strict=True):
        tokens += path.length - shared
        looked_at += sum(range(shared + 1, path.length + 1))
    places = {
        (path.tokens[: path.context + n + 1].tobytes())
        for path in paths
        for n in range(path.scored)
    }
    head = config.table_dim * config.vocab_size
    blocks = 2 * (matmul_parameters(config) - head) * tokens
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * looked_at
    return blocks + attention + 2 * head * len(places), tokens, len(places)


def matmul_rates(dtype: str) -> dict[str, float]:
    """FLOP/s of a large product in jax and in torch; on processors by their time, so that others'
    work does not count."""
    import torch

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2048, 2048), np.float32) for _ in range(2))
    jax_a, jax_b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch_a, torch_b = (
        torch.tensor(x).to(device=device, dtype=getattr(torch, dtype)) for x in (a, b)
    )
    product = jax.jit(linear)

    def with_torch() -> None:
        torch_a @ torch_b
        if device == "cuda":
            torch.cuda.synchronize()

    def clock() -> float:
        if device == "cuda":
            return time.perf_counter()
        return time.process_time() / len(os.sched_getaffinity(0))

    def rate(run: Callable[[], Any]) -> float:
        run()
        times = []
        for _ in range(5):
            begun = clock()
            run()
            times.append(clock() - begun)
        return 2 * 2048**3 / min(times)

    return {
        "jax": rate(lambda: product(jax_a, jax_b).block_until_ready()),
        "torch": rate(with_torch),
    }


# ---- models --------------------------------------------------------------------------------------


def open_ours(model: str, dtype: str) -> ChopjaxLM:
    loaded, engine = open_engine(model, dtype=dtype)
    return ChopjaxLM.over(loaded, engine)


def open_peer(model: str, dtype: str, device: str, **options: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(model, device=device, dtype=dtype, batch_size=1, **options)


def model_line(ours: ChopjaxLM, args: argparse.Namespace) -> str:
    config = ours.engine.config
    name = Path(args.model).name if args.model else f"random weights, {args.shape}"
    return (
        f"{name}: {config.num_layers} layers of D={config.embed_dim}, V={config.vocab_size}, "
        f"{matmul_parameters(config) / 1e6:.1f} M parameters in products, "
        f"context {config.max_positions}"
    )


def write_random(folder: Path, tokenizer: Path, shape: dict[str, Any], dtype: str) -> Path:
    """A Hugging Face folder of random weights and the given tokenizer."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    size = len(AutoTokenizer.from_pretrained(folder))
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 10000.0}
    raw |= shape | {"vocab_size": size, "torch_dtype": dtype}
    raw |= {"bos_token_id": None, "eos_token_id": None}
    # Twice the usual deviation, so that tokens differ in what the model thinks of them.
    write_checkpoint(folder, raw, dtype, 2)
    return folder


# ---- bfloat16 beside float32 ---------------------------------------------------------------------


def against_float32(model: str, tasks: dict[str, Tasks], args: argparse.Namespace) -> int:
    exact = open_ours(model, "float32")
    peer = open_peer(model, "bfloat16", args.device, softmax_dtype="float32")
    halves = {"ours": open_ours(model, "bfloat16"), "hf": peer}
    set_batch_size(halves["hf"], args.batch_sizes.split(",")[-1])
    print(f"{model_line(exact, args)}: bfloat16 beside our float32, every softmax in float32")
    print(f"{'task':12}{'whose':>6}{'docs':>8}{'median':>10}{'99 %':>10}{'largest':>10}   metrics")
    rows = []
    for name, group in tasks.items():
        _, reference = timed(exact, group)
        docs = sum(len(samples) for samples in reference["samples"].values())
        for whose, half in halves.items():
            found = agreement(timed(half, group)[1], reference)
            rows.append({"task": name, "whose": whose, "documents": docs, **found})
            nats = "".join(f"{found['nats'][key]:10.4f}" for key in ("median", "99 %", "largest"))
            moved = {n: b - a for n, (b, a) in found["metrics differ"].items() if "stderr" not in n}
            largest = max(moved.items(), key=lambda item: abs(item[1]), default=("", 0.0))
            print(
                f"{name:12}{whose:>6}{docs:>8,}{nats}   "
                f"{len(moved)} move, most {largest[1]:+.4f} {largest[0]}"
            )
    if args.json:
        print(json.dumps({"unit": "nats a request, absolute difference", "rows": rows}))
    return 0


# ---- tables --------------------------------------------------------------------------------------


def mix(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All documents of the full tasks, at the speeds measured."""
    sizes = [TASKS[row["task"]].documents for row in rows]

    def speed(per_second: Callable[[dict[str, Any]], float]) -> float:
        return sum(sizes) / sum(n / per_second(row) for n, row in zip(sizes, rows, strict=True))

    speeds = {side: speed(lambda row, side=side: row[side]) for side in ("ours", "peer", "floor")}
    cpu = {
        side: speed(lambda row, side=side: row["per_cpu_second"][side])
        for side in rows[0]["per_cpu_second"]
    }
    alone = {"alone_ratio": cpu["alone"] / cpu["peer"]} if "alone" in cpu else {}
    return {
        "task": "mix",
        "documents": sum(row["documents"] for row in rows),
        "weights": {row["task"]: n for row, n in zip(rows, sizes, strict=True)},
        **speeds,
        "ratio": speeds["ours"] / speeds["peer"],
        "cpu_ratio": cpu["ours"] / cpu["peer"],
        **alone,
    }


def print_row(row: dict[str, Any], first: bool = False) -> None:
    if first:
        print(
            f"{'documents/s':12}{'docs':>7}{'ours':>9}{'hf':>9}{'ratio':>7}{'CPU':>7}{'alone':>7}"
            f"{'floor':>9}{'batch':>7}{'compile':>13}{'largest Δ':>12}   greedy and metrics"
        )
    line = f"{row['task']:12}{row['documents']:>7,}{row['ours']:>9.1f}{row['peer']:>9.2f}"
    line += f"{row['ratio']:>7.2f}{row['cpu_ratio']:>7.2f}"
    line += f"{row['alone_ratio']:>7.2f}" if "alone_ratio" in row else f"{'':7}"
    line += f"{row['floor']:>9.1f}"
    if "agreement" in row:
        found, compiled = row["agreement"], row["compile"]
        equal = not found["is_greedy differs"] and not found["metrics differ"]
        line += f"{row['batch_size']:>7}{compiled['seconds']:>8.1f} s, {compiled['programs']:>2}"
        line += f"{found['nats']['largest']:>12.1e}   {'equal' if equal else 'DIFFER'}"
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
