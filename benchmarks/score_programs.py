"""What the scorer's programs take of an accelerator's memory, without one.

    python benchmarks/score_programs.py [--topology v5e:1x1] [--layers 16] [--only NAME ...]

Minutes for each on a TPU's compiler.

Compiles the forward pass over a batch of 16,384 tokens for a Llama-2-7B with fewer layers in
bfloat16, with the real compiler of the topology's chip (as `chopjax plan` does), in four ways: all
scores of a row at once, in blocks of queries, in tiles of queries and keys (what runs where no
kernel does), and with the kernel that the scorer takes there by itself. Prints what the program
needs besides weights and batch, and the seconds until compiled. Where no kernel takes the batch,
the reason stands there.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from typing import Any

from chopjax.plan.topology import parse, prepare_environment

# Name → rows, tokens of a row, slots of the trunk before them; None of rows: a trunk being read.
BATCHES = {
    "rows-512": (32, 512, 0),
    "rows-2048": (8, 2048, 0),
    "rows-4096": (4, 4096, 0),
    "trunk-1536": (32, 512, 1536),
    "read-4096": (None, 4096, 0),
}
WAYS = ("whole", "blocks", "tiles", "kernel")


def in_tiles(*_: object) -> tuple[str, None]:
    """In the place of choose_masked."""
    return "tiles", None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="v5e:1x1", metavar="SLICE")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=BATCHES, default=list(BATCHES), metavar="NAME")
    args = parser.parse_args()
    prepare_environment()

    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from chopjax.checkpoint.published import CONFIGS
    from chopjax.models import decoder, families, masked_attention
    from chopjax.models.compute import Compute
    from chopjax.models.scores import all_scores
    from chopjax.models.tree_attention import Tree
    from chopjax.plan.gpus import Cluster, answer_for_the_gpu
    from chopjax.plan.topology import devices
    from chopjax.score import engine

    raw = CONFIGS["meta-llama/Llama-2-7b-hf"] | {"num_hidden_layers": args.layers}
    config = families.translate(raw)[1]
    topology = parse(args.topology)
    device = devices(topology)[0]
    gpu = isinstance(topology, Cluster)
    if gpu:
        answer_for_the_gpu()
    # The scorer asks jax where it runs, and gets the answer that it would get there.
    jax.default_backend = lambda: "gpu" if gpu else "tpu"
    place = SingleDeviceSharding(device)

    def array(*shape: int, dtype: object = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    params = jax.tree.map(
        lambda leaf: array(*leaf.shape, dtype=leaf.dtype), decoder.abstract(config, jnp.bfloat16)
    )
    default_block, choose = masked_attention.BLOCK, masked_attention.choose_masked
    for name in args.only:
        rows, length, slots = BATCHES[name]
        for way in WAYS:
            masked_attention.BLOCK = 1 << 20 if way == "whole" else default_block
            decoder.choose_masked = in_tiles if way == "tiles" else choose
            xla = way in ("whole", "blocks")
            compute = Compute("bfloat16", attention="xla" if xla else "auto")
            tree = Tree() if rows is None else Tree(array(rows, length))  # type: ignore[arg-type]
            if way == "kernel":
                kernel, reason = masked_attention.choose_masked(
                    tree, length, slots, jnp.bfloat16, config.head_dim, all_scores(config)[0], False
                )
                if reason:
                    print(f"{name:11} {way:7} none: {reason}", flush=True)
                    continue
                way = kernel
            static: dict[str, Any] = {"config": config, "compute": compute}
            if rows is None:
                function, arguments = engine._read_trunk, (array(1, length), array())
            else:
                function = engine._score_rows
                ids, heads = array(rows, length), (config.num_kv_heads, config.head_dim)
                past = None
                if slots:
                    keys = array(args.layers, 1, slots, *heads, dtype=jnp.bfloat16)
                    past = decoder.Past(
                        keys, keys, array(1, slots, dtype=jnp.bool_), array(1, slots)
                    )
                scores = array(1, rows * length)
                arguments = (ids, ids, ids, scores, scores, array(), past)
                static["chunk"] = engine._chunk(1, rows * length, config.vocab_size)
            begun = time.monotonic()
            # A function of its own each time: jax would find the way before in its cache.
            traced = jax.jit(functools.partial(function, **static))
            program = traced.lower(params, *arguments).compile()
            needs: Any = program.memory_analysis()
            seconds = time.monotonic() - begun
            gib = (needs.temp_size_in_bytes + needs.output_size_in_bytes) / 2**30
            print(f"{name:11} {way:7} {gib:6.2f} GiB  compiled in {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
