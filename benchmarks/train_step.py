"""How fast and how small is the training step beside transformers and torch, on this processor?

    python benchmarks/train_step.py [--layers 6 24] [--rounds 5] [--steps 3] [--without-compiled]
        [--dtype float32 | bfloat16] [--compile-time [llama | gemma3]] [--json]

A Llama (D=288, F=768, 6 heads, V=32000, untied) on batches of 8 x 256 tokens, float32 throughout,
or with --dtype bfloat16 the products in that (ours compute.dtype, torch's autocast).
Both sides read the same checkpoint of random weights and see the same batches, clip the gradient
to norm 1 and update by AdamW with weight decay on all but the norms; the losses of all steps must
agree. Ours is the step that `chopjax train` runs, with the settings that it has by default. Peers:
`eager` is transformers' LlamaForCausalLM with sdpa attention, torch's fused AdamW, all threads;
`compiled` is the same through torch.compile. Every contestant is a process of its own that lives
as long as the measurement; rounds of a few steps alternate between them, one working at a time.

Speed: tokens/s, the median over the rounds. Memory: the largest resident set (VmHWM), interpreter
and libraries included, `steps` over the measured steps (the mark is reset before them) and
`process` from the start on, reading the checkpoint and compiling included. The ratios are those of
the faster peer, and of memory that of the leaner peer. The floor: 6·N FLOPs a token, N being all
parameters that a token is multiplied with, at the rate of a large matrix product of that type here
(the best of torch's and jax's, in the same rounds).

--compile-time: seconds to trace and compile the step at 48 layers beside 4 (no compilation cache);
with gemma3, whose layers differ in windows and ropes (five of six local), at 48 beside 12.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
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
from workers import Step, Worker, serve, timed, write_weights

B, T = 8, 256
SHAPE = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 288,
    "intermediate_size": 768,
    "num_attention_heads": 6,
    "max_position_embeddings": T,
    "tie_word_embeddings": False,
}
RATE, B1, B2, EPSILON, DECAY, CLIP = 3e-4, 0.9, 0.95, 1e-8, 0.1, 1.0
PEERS = ("eager", "compiled")
GEMMA3 = {
    "model_type": "gemma3_text",
    "vocab_size": 32_000,
    "hidden_size": 288,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "sliding_window": 128,
    "max_position_embeddings": T,
}
COMPILED = {"llama": (SHAPE, (4, 48)), "gemma3": (GEMMA3, (12, 48))}  # shape, depths
TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-3}  # of losses, relative
SIDE = 2048  # of the matrices that the floor is measured with


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 24])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="in every round")
    parser.add_argument("--without-compiled", action="store_true", help="no torch.compile")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="of products")
    parser.add_argument(
        "--compile-time", nargs="?", const="llama", choices=COMPILED, help="only that"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile_time and args.dtype != "float32":
        parser.error("--compile-time is of float32")
    if args.worker:
        name, argument = args.worker
        one, other = argument.split(maxsplit=1)
        compile_step(one, other) if name == "compile" else work(name, one, other)
        return 0
    if args.compile_time:
        result = compile_time(args.compile_time, args.rounds)
    else:
        names = ["ours", *PEERS[: 1 if args.without_compiled else 2]]
        result = headline([measure(n, names, args) for n in args.layers], args)
    if args.json:
        print(json.dumps(result))
    return 0


# ---------------------------------------------------------------------------------- Side by side


def measure(layers: int, names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """One depth: a row for every contestant, medians over the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        write_weights(folder, SHAPE | {"num_hidden_layers": layers})
        given = f"{args.dtype} {folder}"
        workers = {name: Worker(__file__, name, given) for name in [*names, "rate"]}
        try:
            answers: dict[str, list[Any]] = {name: [] for name in workers}
            for worker in workers.values():
                worker.ask(2)  # compiles, and makes the optimizer's state
            for _ in range(args.rounds):
                for name, worker in workers.items():
                    answers[name].append(worker.ask(args.steps))
        finally:
            for worker in workers.values():
                worker.close()
    flops = 6 * B * T * matmul_parameters(layers)
    rate = statistics.median(answer["flops_per_second"] for answer in answers.pop("rate"))
    rows = {}
    for name, rounds_of in answers.items():
        seconds = statistics.median(s for answer in rounds_of for s in answer["seconds"])
        rows[name] = {
            "tokens_per_second": B * T / seconds,
            "step_seconds": seconds,
            "share_of_floor": flops / rate / seconds,
            "peak_steps": max(answer["peak_steps"] for answer in rounds_of),
            "peak_process": max(answer["peak_process"] for answer in rounds_of),
            "losses": [loss for answer in rounds_of for loss in answer["losses"]],
        }
    for name, row in rows.items():
        np.testing.assert_allclose(
            row["losses"],
            rows["ours"]["losses"],
            rtol=TOLERANCE[args.dtype],
            err_msg=f"losses of {name}",
        )
    show(layers, rows, rate, B * T * rate / flops)
    return {"layers": layers, "floor_tokens_per_second": B * T * rate / flops, "rows": rows}


def show(layers: int, rows: dict[str, Any], rate: float, floor: float) -> None:
    ours = rows["ours"]
    print(
        f"{layers} layers, {len(ours['losses'])} steps of {B} x {T} tokens, losses agree "
        f"({ours['losses'][0]:.4f} -> {ours['losses'][-1]:.4f}); "
        f"floor {floor:,.0f} tokens/s at {rate / 1e9:.0f} GFLOP/s"
    )
    print(f"{'':10}{'tokens/s':>10}{'of floor':>10}{'steps MB':>10}{'process MB':>12}   ours/it:")
    for name, row in rows.items():
        speed, steps, whole = (
            ours[key] / row[key] for key in ("tokens_per_second", "peak_steps", "peak_process")
        )
        print(
            f"{name:10}{row['tokens_per_second']:10,.0f}{row['share_of_floor']:10.2f}"
            f"{row['peak_steps'] / 1e6:10,.0f}{row['peak_process'] / 1e6:12,.0f}"
            f"   {speed:.2f}x the speed, {steps:.2f}x and {whole:.2f}x the memory"
        )


def headline(depths: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """The object that every benchmark ends with: the depth where we are least ahead."""

    def compare(depth: dict[str, Any]) -> dict[str, Any]:
        ours = depth["rows"]["ours"]
        peers = [row for name, row in depth["rows"].items() if name != "ours"]
        peer = max(row["tokens_per_second"] for row in peers)
        memory = {
            f"memory_ratio_{key}": ours[f"peak_{key}"] / min(row[f"peak_{key}"] for row in peers)
            for key in ("steps", "process")
        }
        speed = ours["tokens_per_second"]
        return {"ours": speed, "peer": peer, "ratio": speed / peer} | memory

    compared = [compare(depth) for depth in depths]
    worst = min(compared, key=lambda each: each["ratio"])
    settings = {"batch": [B, T], "optimizer": "adamw", "rounds": args.rounds, "steps": args.steps}
    settings["dtype"] = args.dtype
    settings["versions"] = {name: version(name) for name in ("jax", "torch", "transformers")}
    return worst | {
        "memory_ratio_steps": max(each["memory_ratio_steps"] for each in compared),
        "memory_ratio_process": max(each["memory_ratio_process"] for each in compared),
        "unit": "tokens/s",
        "settings": SHAPE | settings,
        "depths": depths,
    }


def work(name: str, dtype: str, folder: str) -> None:
    """Answer every line that asks for n steps."""

    def make() -> Callable[[int], dict[str, Any]]:
        if name == "rate":
            return lambda _: {"flops_per_second": matmul_rate(dtype)}
        if name == "ours":
            step = ours(Path(folder), dtype)
        else:
            step = torch_step(folder, name == "compiled", dtype == "bfloat16")
        return timed(step, (B, T), SHAPE["vocab_size"])

    serve(make)


# ---------------------------------------------------------------------------------- Contestants


def settings(layers: int, shape: dict[str, Any] = SHAPE, dtype: Any = "float32") -> Any:
    """Of `chopjax train`: its defaults, and the optimizer that both sides use."""
    from chopjax.train.settings import (
        ComputeSettings,
        DataSettings,
        OptimizerSettings,
        Settings,
    )

    return Settings(
        scratch=shape | {"num_hidden_layers": layers},
        data=DataSettings(batch_size=B, sequence_length=T),
        compute=ComputeSettings(dtype=dtype),
        optimizer=OptimizerSettings(
            name="adamw",
            peak_learning_rate=RATE,
            final_fraction=1.0,
            b1=B1,
            b2=B2,
            weight_decay=DECAY,
            clip_norm=CLIP,
        ),
    )


def ours(folder: Path, dtype: str) -> Step:
    from our_steps import Run

    from chopjax.train.optimizer import ADAM_EPSILON

    assert ADAM_EPSILON == EPSILON
    raw = json.loads((folder / "config.json").read_text())
    return Run(folder, settings(raw["num_hidden_layers"], dtype=dtype)).program(B, T).step


def config_of(layers: int, shape: dict[str, Any] = SHAPE) -> Any:
    from chopjax.models.families import translate

    return translate(shape | {"num_hidden_layers": layers})[1]


def lowered(config: Any, optimizer: Any, chosen: Any, mesh: Any, abstract: Any) -> Any:
    """The training step, traced for the batch's shape."""
    import jax

    from chopjax.models import mesh as meshes
    from chopjax.train import step as steps
    from chopjax.train.objectives import next_token

    rows = meshes.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((B, T), dtype, sharding=rows)
        for name, dtype in steps.BATCH_DTYPES.items()
    }
    objective = next_token(config, chosen)
    step = steps.make_train_step(objective, optimizer, chosen, abstract, {}, mesh)
    return step.lower(abstract, {}, batch)


def torch_step(folder: str, compiled: bool, autocast: bool) -> Step:
    import torch
    from torch_steps import by_decay, make_step, open_model

    model = open_model(folder).train()
    return make_step(
        model,
        by_decay(model, DECAY),
        rate=RATE,
        betas=(B1, B2),
        epsilon=EPSILON,
        clip=CLIP,
        run=torch.compile(model) if compiled else model,
        autocast=autocast,
    )


def matmul_parameters(layers: int) -> int:
    from chopjax.models.flops import matmul_parameters as count

    return count(config_of(layers))


def matmul_rate(dtype: str) -> float:
    """FLOP/s of a large product, the best of torch's and jax's."""
    import jax
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    a = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    on_torch, on_jax = torch.from_numpy(a).to(getattr(torch, dtype)), jax.numpy.asarray(a, dtype)
    product = jax.jit(lambda x, y: x @ y)
    runs: list[Callable[[], Any]] = [
        lambda: on_torch @ on_torch,
        lambda: product(on_jax, on_jax).block_until_ready(),
    ]
    best = float("inf")
    for run in runs:
        run()
        for _ in range(3):
            begun = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - begun)
    return 2 * SIDE**3 / best


# --------------------------------------------------------------------------------- Compile time


def compile_time(name: str, rounds: int) -> dict[str, Any]:
    """Seconds to trace and compile at two depths, each in a process of its own."""
    shape, depths = COMPILED[name]
    seconds: dict[int, list[float]] = {depth: [] for depth in depths}
    for _ in range(rounds):
        for depth, taken in seconds.items():
            command = [sys.executable, __file__, "--worker", "compile", f"{name} {depth}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            taken.append(float(done.stdout))
    shallow, deep = (statistics.median(taken) for taken in seconds.values())
    for depth, taken in seconds.items():
        print(f"{depth:3} layers: {statistics.median(taken):6.2f} s to trace and compile the step")
    print(f"ratio {deep / shallow:.2f}")
    return {
        "ours": deep,
        "peer": shallow,
        "ratio": deep / shallow,
        "unit": "seconds to trace and compile the step",
        "settings": shape | {"batch": [B, T], "layers": depths, "rounds": rounds},
    }


def compile_step(name: str, depth: str) -> None:
    """Prints the seconds that it takes from a config to a program."""
    import jax

    from chopjax.models import mesh as meshes
    from chopjax.train import step as steps
    from chopjax.train.optimizer import make_optimizer

    jax.config.update("jax_enable_compilation_cache", False)
    shape, layers = COMPILED[name][0], int(depth)
    chosen, config, mesh = settings(layers, shape), config_of(layers, shape), meshes.make_mesh()
    jax.block_until_ready(jax.numpy.zeros(1) + 1)  # the backend has started
    with jax.set_mesh(mesh):
        begun = time.perf_counter()
        optimizer = make_optimizer(chosen.optimizer, chosen.total_steps)
        params = steps.abstract_params(config, chosen.compute.param_dtype, mesh)
        abstract = steps.abstract_state(params, optimizer, chosen, mesh)
        lowered(config, optimizer, chosen, mesh, abstract).compile()
        print(time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main())
