"""How long does the greedy SLEB search take beside the straightforward loop?

    python benchmarks/sleb.py [--model DIR --data FILE.jsonl] [--layers 16] [--sequences 8]
        [--length 128] [--rounds 3] [--json]

The loop: as long as layers are to go, for each layer left (the first and the last are protected),
delete it, run the whole model on the calibration text, take the loss; remove the layer with the
lowest. Three peers run it: `compiled` is jitted once for all candidates (which layers run is data,
hidden states never leave the device, the loss is chunked: everything of ours but the reuse), `loop`
deletes layers from the parameters and jits the whole model with whole logits, which compiles once
for each depth, and `torch` deletes layers from a transformers model. All float32, all remove half
of the layers, and all must remove the same ones.

Without --model the weights are random, in Llama-2-7B's proportions (the head costs 0.65 of a
layer). Rounds alternate between the contestants; figures are medians of whole searches. `loop`
compiles in every search, for that is what it does; `ours` and `compiled` have done so before.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.checkpoint.load import load
from chopjax.chop.calibration import CalibrationBatch, make_batches, predicted_tokens, predictions
from chopjax.chop.prefixes import Prefixes, advance, embed, loss_sum
from chopjax.chop.search import sleb
from chopjax.chop.surgery import chop_params
from chopjax.data.excerpts import excerpts
from chopjax.data.tokenizer import load_tokenizer
from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.families import translate
from chopjax.models.head import head_of, logits

RANDOM = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_attention_heads": 8,
    "vocab_size": 2048,
    "max_position_embeddings": 2048,
}
COMPUTE = Compute()
Keep = tuple[int, ...]
Search = Callable[[], list[int]]


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", help="folder of a checkpoint; random weights by default")
    parser.add_argument("--data", help="calibration text for --model")
    parser.add_argument("--layers", type=int, default=16, help="of the random model")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", default="", help="peers to leave out, separated by commas")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    raw, config, params, sequences = prepare(args)
    batches = make_batches(sequences, args.batch_size)
    remove, protected = config.num_layers // 2, (0, config.num_layers - 1)

    blocks = 0

    def ours() -> list[int]:
        nonlocal blocks
        prefixes = Prefixes(params, config, COMPUTE, batches)
        removals = sleb(prefixes, remove, protected)
        blocks = prefixes.blocks_run // len(batches)
        return [removal.layer for removal in removals]

    def greedy(loss: Callable[[Keep], float]) -> Search:
        return lambda: plain_search(loss, config.num_layers, remove, protected)

    searches: dict[str, Search] = {
        "ours": ours,
        "compiled": greedy(functools.partial(compiled_loss, params, config, batches)),
        "loop": lambda: greedy(looped_loss(params, config, batches))(),
    }
    left_out = args.without.split(",")
    if "torch" not in left_out:
        searches["torch"] = greedy(torch_loss(args.model, raw, params, sequences, args.batch_size))
    searches = {name: search for name, search in searches.items() if name not in left_out}
    for name in ("ours", "compiled"):
        searches[name]()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    orders = {}
    for _ in range(args.rounds):
        for name, search in searches.items():
            begun = time.perf_counter()
            orders[name] = search()
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    L = config.num_layers
    plain_blocks = sum((L - 2 - r) * (L - 1 - r) for r in range(remove))
    print(f"{L} layers, {remove} removed, {len(sequences)} x {args.length} tokens, float32")
    print(f"removed, in order: {orders['ours']}")
    candidates = sum(L - 2 - r for r in range(remove))
    programs = sum(function._cache_size() for function in (embed, advance, loss_sum))
    print(f"programs compiled by ours: {programs}, for {candidates} candidates")
    print(f"layers run: ours {blocks}, plain loop {plain_blocks} ({blocks / plain_blocks:.2f})")
    for name, value in medians.items():
        same = "" if orders[name] == orders["ours"] else f"   removed {orders[name]}"
        print(f"{name:10}{value:9.2f} s{medians['ours'] / value:8.2f}{same}")
    if args.json:
        print(
            json.dumps(
                {
                    "ours": medians["ours"],
                    "peer": medians["compiled"],
                    "ratio": medians["ours"] / medians["compiled"],
                    "unit": "seconds for a search to half depth",
                    "seconds": seconds,
                    "programs": programs,
                    "candidates": candidates,
                    "layers_run": {"ours": blocks, "plain": plain_blocks},
                    "removed": orders,
                    "settings": vars(args),
                }
            )
        )
    return 0


def prepare(args: argparse.Namespace) -> tuple[Any, Any, Any, list[list[int]]]:
    if args.model:
        loaded = load(args.model)
        tokenizer = load_tokenizer(args.model)
        sequences = excerpts([args.data], tokenizer, args.sequences, args.length, seed=0)
        return loaded.raw_config, loaded.config, loaded.params, sequences
    raw = RANDOM | {"num_hidden_layers": args.layers}
    _, config = translate(raw)
    # Larger than usual, so that layers differ in what they do.
    params = jax.tree.map(lambda w: 2 * w, decoder.init(config, jax.random.key(0)))
    draw = np.random.default_rng(0)
    shape = (args.sequences, args.length)
    return raw, config, params, draw.integers(0, config.vocab_size, shape).tolist()


def plain_search(
    loss: Callable[[Keep], float], num_layers: int, remove: int, protected: Sequence[int]
) -> list[int]:
    keep, order = tuple(range(num_layers)), []
    for _ in range(remove):
        lists = {c: tuple(k for k in keep if k != c) for c in keep if c not in protected}
        losses = {c: loss(candidate) for c, candidate in lists.items()}
        order.append(min(losses, key=losses.__getitem__))
        keep = lists[order[-1]]
    return order


def compiled_loss(
    params: Any, config: Any, batches: Sequence[CalibrationBatch], keep: Keep
) -> float:
    layers_L = np.zeros(config.num_layers, np.int32)
    layers_L[: len(keep)] = keep
    sums = [whole(params, batch, layers_L, len(keep), config) for batch in batches]
    return float(sum(sums)) / predicted_tokens(batches)


@functools.partial(jax.jit, static_argnames="config")
def whole(
    params: Any, batch: CalibrationBatch, layers_L: Any, count: Any, config: Any
) -> jax.Array:
    hidden_BTD = embed(params, batch, config, COMPUTE)
    hidden_BTD = advance(params, hidden_BTD, layers_L, 0, count, config, COMPUTE)
    return loss_sum(params, hidden_BTD, batch, config, COMPUTE)


def looped_loss(
    params: Any, config: Any, batches: Sequence[CalibrationBatch]
) -> Callable[[Keep], float]:
    @functools.partial(jax.jit, static_argnames="config")
    def run(params: Any, batch: CalibrationBatch, config: Any) -> jax.Array:
        hidden = decoder.hidden_states(params, config, COMPUTE, batch.tokens_BT)
        logits_BTV = logits(head_of(params, config), hidden)
        targets, weights = predictions(batch)
        log_p = jax.nn.log_softmax(logits_BTV, axis=-1)
        return -(jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0] * weights).sum()

    def loss(keep: Keep) -> float:
        chopped = chop_params(params, keep)
        sums = [run(chopped, batch, config.keep(keep)) for batch in batches]
        return float(sum(sums)) / predicted_tokens(batches)

    return loss


def torch_loss(
    model: str | None, raw: Any, params: Any, sequences: Sequence[Sequence[int]], batch_size: int
) -> Callable[[Keep], float]:
    import tempfile

    import torch
    import transformers

    if model:
        found = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    else:
        config = transformers.AutoConfig.for_model(**raw)
        with tempfile.TemporaryDirectory() as folder:
            write_random(Path(folder), raw, params)
            found = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config)
    found = found.eval()
    layers = list(found.model.layers)
    width = max(map(len, sequences))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in sequences])
    labels = torch.tensor([[*row, *[-100] * (width - len(row))] for row in sequences])

    def loss(keep: Keep) -> float:
        found.model.layers = torch.nn.ModuleList(layers[k] for k in keep)
        total = count = 0.0
        with torch.inference_mode():
            for start in range(0, len(tokens), batch_size):
                rows = slice(start, start + batch_size)
                part = int((labels[rows, 1:] != -100).sum())
                reply = found(tokens[rows], labels=labels[rows], use_cache=False)
                total, count = total + float(reply.loss) * part, count + part
        return total / count

    return loss


def write_random(folder: Path, raw: Any, params: Any) -> None:
    """The random weights as transformers reads them."""
    from safetensors.numpy import save_file

    from chopjax.models import parameters
    from chopjax.models.families import table

    family, config = translate(raw)
    flat, size = flatten_dict(params, sep="/"), parameters.sizes(config)
    tensors = {}
    for binding in table.bind(family, config, table.usual_naming(family)):
        arrays = [np.asarray(flat[path]) for path in binding.row.targets]
        arrays = [a if binding.layer is None else a[binding.layer] for a in arrays]
        tensors[binding.source] = np.ascontiguousarray(binding.row.to_tensor(arrays, size))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw))


if __name__ == "__main__":
    sys.exit(main())
