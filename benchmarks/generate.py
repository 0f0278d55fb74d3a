"""How fast is text, beside transformers, and how near is it to what the memory allows?

    python benchmarks/generate.py --model DIR [--draft-keep 0-19 | --draft DIR] [--draft-length 4]
        [--rows 1 8] [--prompt-length 100] [--new-tokens 65] [--rounds 3] [--dtype bfloat16]
        [--json]

    plain       `chopjax generate`'s greedy decoding
    draft       the same with a draft: a checkpoint, or layers of the model itself
    hf          transformers' generate, sdpa attention, one call with the whole batch
    hf-draft    its assisted generation with the same draft, of one row (it takes no more)

Float32, or as --dtype says. Prompts are random ids of equal length, so that nothing is padded, and
nobody ends a text early. How many tokens are those of `plain` is printed: a near tie may fall the
other way, and all tokens behind it. Every contestant is a process of its own, and they take turns.

Floor: bytes of the weights that a token needs (the table alone is not read whole where it is not
tied) and of half the cache's slots, over the bandwidth of reading memory, measured in every turn:
the median, as of all else. What is held against it is the time of a token behind the prompt:
each turn also writes a single token, and the rest takes the difference.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from workers import Worker, serve

READ = 1 << 29  # bytes of a pass over memory


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--draft", type=Path, help="a checkpoint")
    parser.add_argument("--draft-keep", help="layers of the model itself")
    parser.add_argument("--draft-length", type=int, default=4)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-length", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=65)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, said = args.worker[0], json.loads(args.worker[1])
        serve(lambda: CONTESTANTS[name](said))
        return 0
    if args.model is None or not (args.model / "config.json").is_file():
        parser.error(f"--model {args.model}: no config.json there")
    if args.draft and args.draft_keep:
        parser.error("one of --draft and --draft-keep")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    if args.json:
        print(json.dumps(result))
    return 0


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    draft = args.draft
    if args.draft_keep:  # for transformers, which has no other way to name these layers
        from chopjax import cli

        draft = folder / "draft"
        if code := cli.main(["chop", str(args.model), str(draft), "--keep", args.draft_keep]):
            raise SystemExit(code)
    said = {
        "model": str(args.model),
        "draft": draft and str(draft),
        "keep": args.draft_keep,
        "length": args.draft_length,
        "dtype": args.dtype,
    }
    names = list(CONTESTANTS) if draft else ["plain", "hf"]
    workers = {name: Worker(__file__, name, json.dumps(said)) for name in names}
    try:
        rows = {rows: side_by_side(workers, rows, args) for rows in args.rows}
    finally:
        for worker in workers.values():
            worker.close()
    versions = {name: version(name) for name in ("jax", "torch", "transformers")}
    return {"rows": rows, "versions": versions}


def side_by_side(workers: dict[str, Worker], rows: int, args: argparse.Namespace) -> dict[str, Any]:
    asked = {"rows": rows, "prompt": args.prompt_length, "new": args.new_tokens}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    bandwidths = []
    for turn in range(args.rounds + 1):
        bandwidths.append(memory_bandwidth())
        for name, worker in workers.items():
            if name == "hf-draft" and rows > 1:
                continue
            first, answer = worker.ask(asked | {"new": 1}), worker.ask(asked)
            if turn:  # the first compiles
                answers[name].append(answer | {"behind": answer["seconds"] - first["seconds"]})
    found: dict[str, Any] = {}
    plain = answers["plain"][0]
    bandwidth = statistics.median(bandwidths)
    floor = plain["bytes"] / bandwidth
    print(f"{rows} rows of {args.prompt_length} tokens, {args.new_tokens} more; ", end="")
    print(f"memory is read at {bandwidth / 1e9:.1f} GB/s")
    for name, given in answers.items():
        if not given:
            continue
        seconds = statistics.median(answer["seconds"] for answer in given)
        token = statistics.median(answer["behind"] for answer in given) / (args.new_tokens - 1)
        speed = rows * args.new_tokens / seconds
        same = np.array(given[0]["ids"]) == np.array(plain["ids"])
        found[name] = {
            "tokens_per_second": speed,
            "token_ms": token * 1e3,
            "of_floor": floor / token,
            "same_tokens": int(same.sum()),
            **given[-1]["more"],
        }
        base = found["plain"]["tokens_per_second"]
        print(
            f"  {name:9}{speed:9.1f} tokens/s  {speed / base:5.2f}x plain  "
            f"{token * 1e3:6.1f} ms a token, {found[name]['of_floor']:5.2f} of the floor  "
            f"{same.sum()} of {same.size} tokens as plain  {words(given[-1]['more'])}",
            flush=True,
        )
    found["plain"] |= {"floor_seconds": floor, "bandwidth": bandwidth}
    return found


def words(more: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in more.items())


def memory_bandwidth() -> float:
    """Bytes a second, by as many threads as there are processors, and by one if that is more."""
    array = np.ones(READ // 4, np.float32)
    found = []
    for threads in (1, len(os.sched_getaffinity(0))):
        parts, seconds = np.array_split(array, threads), []
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for _ in range(5):
                start = time.perf_counter()
                list(pool.map(np.max, parts))  # adding up would take longer than reading
                seconds.append(time.perf_counter() - start)
        found.append(array.nbytes / statistics.median(seconds))
    return max(found)


def prompts_of(asked: dict[str, int], vocabulary: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.integers(5, vocabulary, (asked["rows"], asked["prompt"]))


# ---------------------------------------------------------------------------------- Contestants

Answer = Callable[[Any], dict[str, Any]]


def ours(said: dict[str, Any], with_draft: bool) -> Answer:
    import jax

    from chopjax.keep import parse_layers
    from chopjax.score.drafting import Drafting, of_layers, of_model
    from chopjax.score.generation import Asked, generate
    from chopjax.score.model import open_engine

    _, engine = open_engine(said["model"], dtype=said["dtype"])
    config = engine.config
    drafting = None
    if with_draft and said["keep"]:
        keep = parse_layers("--draft-keep", said["keep"], config.num_layers)
        drafting = Drafting(engine, of_layers(engine, keep), said["length"])
    elif with_draft:
        other = open_engine(said["draft"], dtype=said["dtype"])[1]
        drafting = Drafting(engine, of_model(engine, other), said["length"])

    def answer(asked: dict[str, int]) -> dict[str, Any]:
        given = list(prompts_of(asked, config.vocab_size).astype(np.int32))
        wanted = Asked(asked["new"])
        start = time.perf_counter()
        if drafting is None:
            texts = dict(generate(engine, given, wanted))
        else:
            texts = {n: one.ids for n, one in drafting.generate(given, wanted)}
        seconds = time.perf_counter() - start
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(engine.params))
        if not config.tie_embeddings:
            weights -= engine.params["embed"]["embedding"].nbytes
        slots = asked["prompt"] + asked["new"] // 2
        slot = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        cache = asked["rows"] * slots * slot * np.dtype(engine.compute.dtype).itemsize
        more = {}
        if drafting is not None and (pace := drafting.pace) is not None:
            more = {"acceptance": pace.acceptance, "cost": pace.cost}
            more["tokens_a_round"] = pace.tokens_a_round
        ids = [texts[row] for row in range(asked["rows"])]
        return {"seconds": seconds, "ids": ids, "bytes": weights + cache, "more": more}

    return answer


def theirs(said: dict[str, Any], with_draft: bool) -> Answer:
    import torch
    import transformers

    def open_model(folder: str) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, said["dtype"])
        ).eval()

    model = open_model(said["model"])
    more: dict[str, Any] = {}
    if with_draft:
        assistant = open_model(said["draft"])
        assistant.generation_config.num_assistant_tokens = said["length"]
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = 0.0
        more["assistant_model"] = assistant
    model.generation_config.eos_token_id = None

    def answer(asked: dict[str, int]) -> dict[str, Any]:
        given = torch.from_numpy(prompts_of(asked, model.config.vocab_size))
        start = time.perf_counter()
        with torch.inference_mode():
            made = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                max_new_tokens=asked["new"],
                pad_token_id=0,
                **more,
            )
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "ids": made[:, asked["prompt"] :].tolist(), "more": {}}

    return answer


CONTESTANTS: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "plain": lambda said: ours(said, False),
    "hf": lambda said: theirs(said, False),
    "draft": lambda said: ours(said, True),
    "hf-draft": lambda said: theirs(said, True),
}


if __name__ == "__main__":
    sys.exit(main())
