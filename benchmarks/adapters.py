"""How fast and how small are LoRA and QLoRA steps, beside the full step and beside peft?

    python benchmarks/adapters.py [--shapes smollm2 mix] [--rounds 5] [--steps 3] [--rank 8]
        [--only NAME ...] [--json]

Two Llamas: `smollm2` has SmolLM2-135M's widths (D=576, F=1536, 9 heads on 3, V=49152, tied) and 6
of its 30 layers; `mix` is mix-llama-12l's (D=160, F=432, 5 heads on 1, V=4096, tied, 12 layers).
Batches of 8 x 256 tokens, float32 throughout, adapters on the feed-forward. All read the same
checkpoint of random weights and see the same batches; adapters begin with the same numbers; the
gradient is clipped to norm 1, and AdamW updates without decay.

    full        all weights, as `chopjax train` does it
    lora        dropout 0.05;  lora-0: none;  nf4, int8: dropout 0.05 on a quantized base
    peft        transformers' LlamaForCausalLM with sdpa attention under peft's LoRA, dropout 0.05,
                torch's fused AdamW, all threads;  peft-0: no dropout

Losses of `lora-0` and `peft-0` must agree. Every contestant is a process of its own that lives as
long as the measurement; rounds of a few steps alternate between them, one working at a time.

Speed: tokens/s, the median over the rounds. Memory: the largest resident set (VmHWM), `steps` over
the measured steps, `process` from the start on, and `grown` the first of them less what the process
had after it imported its libraries. Then the bytes of quantized bases, by their shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from workers import Step, Worker, peak_memory, reset_peak_memory, serve, timed, write_weights

B, T = 8, 256
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": T,
    "tie_word_embeddings": True,
}
MIX = SMOLLM2 | {
    "vocab_size": 4096,
    "hidden_size": 160,
    "intermediate_size": 432,
    "num_hidden_layers": 12,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
}
SHAPES = {"smollm2": SMOLLM2, "mix": MIX}
# Name → dropout, base; None: all weights.
OURS: dict[str, tuple[float, str] | None] = {
    "full": None,
    "lora": (0.05, "float"),
    "lora-0": (0.0, "float"),
    "nf4": (0.05, "nf4"),
    "int8": (0.05, "int8"),
}
PEFT = {"peft": 0.05, "peft-0": 0.0}
MATRICES = ("gate", "up", "down")
RATE, B1, B2, EPSILON, CLIP = 3e-4, 0.9, 0.95, 1e-8, 1.0
TOLERANCE = 2e-4  # of losses, relative


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--only", nargs="+", choices=[*OURS, *PEFT], default=[*OURS, *PEFT])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="in every round")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return 0
    result: dict[str, Any] = {
        "settings": {"batch": [B, T], "rank": args.rank, "rounds": args.rounds},
        "versions": {name: version(name) for name in ("jax", "torch", "transformers", "peft")},
        "shapes": {name: measure(name, args) for name in args.shapes},
        "bases": bases(),
    }
    if args.json:
        print(json.dumps(result))
    return 0


# ---------------------------------------------------------------------------------- Side by side


def measure(shape: str, args: argparse.Namespace) -> dict[str, Any]:
    """A row for every contestant, medians over the rounds."""
    raw = SHAPES[shape]
    with tempfile.TemporaryDirectory() as folder:
        write_weights(folder, raw)
        write_adapters(Path(folder), raw, args.rank)
        workers = {name: Worker(__file__, name, folder) for name in args.only}
        answers: dict[str, list[Any]] = {name: [] for name in workers}
        try:
            for worker in workers.values():
                worker.ask(2)  # compiles, and makes the optimizer's state
            for _ in range(args.rounds):
                for name, worker in workers.items():
                    answers[name].append(worker.ask(args.steps))
        finally:
            for worker in workers.values():
                worker.close()
    rows = {name: row_of(rounds_of) for name, rounds_of in answers.items()}
    if {"lora-0", "peft-0"} <= set(rows):
        np.testing.assert_allclose(
            rows["lora-0"]["losses"], rows["peft-0"]["losses"], rtol=TOLERANCE
        )
    show(shape, rows)
    return rows


def row_of(rounds_of: list[Any]) -> dict[str, Any]:
    seconds = statistics.median(s for answer in rounds_of for s in answer["seconds"])
    peaks = {
        name: max(answer[name] for answer in rounds_of)
        for name in ("peak_steps", "peak_process", "grown")
    }
    losses = [loss for answer in rounds_of for loss in answer["losses"]]
    return {"tokens_per_second": B * T / seconds, "losses": losses} | peaks


def show(shape: str, rows: dict[str, Any]) -> None:
    print(f"{shape}: steps of {B} x {T} tokens")
    print(f"{'':8}{'tokens/s':>10}{'steps MB':>10}{'grown MB':>10}{'process MB':>12}")
    for name, row in rows.items():
        memory = (row[key] / 1e6 for key in ("peak_steps", "grown", "peak_process"))
        steps, grown, process = memory
        line = f"{name:8}{row['tokens_per_second']:10,.0f}{steps:10,.0f}{grown:10,.0f}"
        print(f"{line}{process:12,.0f}   {ratios(name, rows)}")


def ratios(name: str, rows: dict[str, Any]) -> str:
    row, said = rows[name], []
    if "full" in rows and name in OURS and name != "full":
        speed = row["tokens_per_second"] / rows["full"]["tokens_per_second"]
        said.append(f"{speed:.2f}x the full step's speed")
    peer = "peft-0" if name == "lora-0" else "peft"
    if peer in rows and name in OURS and name != "full":
        speed = row["tokens_per_second"] / rows[peer]["tokens_per_second"]
        steps, grown = (row[key] / rows[peer][key] for key in ("peak_steps", "grown"))
        said.append(f"{speed:.2f}x {peer}'s, {steps:.2f}x its memory, {grown:.2f}x its growth")
    return "; ".join(said)


def work(name: str, folder: str) -> None:
    def make() -> Callable[[int], dict[str, Any]]:
        made = (peft_step if name in PEFT else our_step)(name, Path(folder))
        raw = json.loads((Path(folder) / "config.json").read_text())
        answer = timed(made.step, (B, T), raw["vocab_size"])

        def with_growth(steps: int) -> dict[str, Any]:
            found = answer(steps)
            return found | {"grown": found["peak_steps"] - made.imported}

        return with_growth

    serve(make)


class Made:
    """step, and the bytes that its process held when its libraries were imported."""

    def __init__(self, step: Step, imported: int):
        self.step, self.imported = step, imported


def resident() -> int:
    reset_peak_memory()
    return peak_memory()


# ---------------------------------------------------------------------------------- Contestants


def write_adapters(folder: Path, raw: dict[str, Any], rank: int) -> None:
    """What every contestant's A begins with, "LAYER.MATRIX" → [R, inputs]; B begins at zero."""
    draw = np.random.default_rng(1)
    arrays = {}
    for layer in range(raw["num_hidden_layers"]):
        for matrix in MATRICES:
            width = raw["intermediate_size" if matrix == "down" else "hidden_size"]
            edge = width**-0.5
            arrays[f"{layer}.{matrix}"] = draw.uniform(-edge, edge, (rank, width)).astype("float32")
    np.savez(folder / "adapters.npz", **arrays)


def our_step(name: str, folder: Path) -> Made:
    from our_steps import Run

    from chopjax.models.adapter_settings import AdapterSettings
    from chopjax.train.settings import DataSettings, OptimizerSettings, Settings

    imported = resident()
    begins = dict(np.load(folder / "adapters.npz"))
    adapter = AdapterSettings()
    if (chosen := OURS[name]) is not None:
        dropout, base = chosen
        rank = begins["0.gate"].shape[0]
        adapter = AdapterSettings(rank=rank, dropout=dropout, base=base)  # type: ignore[arg-type]
    settings = Settings(
        model=str(folder),
        data=DataSettings(batch_size=B, sequence_length=T),
        adapter=adapter,
        optimizer=OptimizerSettings(
            name="adamw",
            peak_learning_rate=RATE,
            final_fraction=1.0,
            b1=B1,
            b2=B2,
            weight_decay=0.0,
            clip_norm=CLIP,
        ),
    )
    return Made(Run(folder, settings, begins).program(B, T).step, imported)


def peft_step(name: str, folder: Path) -> Made:
    import torch
    from torch_steps import make_step, open_model, with_lora

    imported = resident()
    begins = dict(np.load(folder / "adapters.npz"))
    base = open_model(folder)
    model = with_lora(base, begins["0.gate"].shape[0], PEFT[name], MATRICES)
    for layer, block in enumerate(base.model.layers):
        for matrix in MATRICES:
            a = getattr(block.mlp, f"{matrix}_proj").lora_A["default"].weight
            a.data.copy_(torch.from_numpy(begins[f"{layer}.{matrix}"]))
    trained = [p for p in model.parameters() if p.requires_grad]
    step = make_step(model, trained, rate=RATE, betas=(B1, B2), epsilon=EPSILON, clip=CLIP)
    return Made(step, imported)


# ------------------------------------------------------------------------------ Bytes of bases


def bases() -> dict[str, Any]:
    """Of quantized bases, as shares of bfloat16's: their matrices alone, and all of the base."""
    import jax

    from chopjax.checkpoint.published import CONFIGS
    from chopjax.models import adapters, parameters
    from chopjax.models.adapter_settings import AdapterSettings
    from chopjax.models.families import translate
    from chopjax.models.mesh import make_mesh
    from chopjax.train.step import abstract_params

    seven = CONFIGS["meta-llama/Llama-2-7b-hf"] | {"num_hidden_layers": 24}
    rows: dict[str, Any] = {}
    print("bytes of the base, of bfloat16's: quantized matrices, and all of it")
    for name, raw in {"Llama-2-7B, 24 layers": seven, **SHAPES}.items():
        config, mesh = translate(raw)[1], make_mesh()
        floats = abstract_params(config, "bfloat16", mesh)
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(floats))
        sizes = parameters.shapes(config)
        matrices = 2 * sum(int(np.prod(sizes[path])) for path in parameters.kernels(config))
        for kind in ("nf4", "int8"):
            adapter = AdapterSettings(rank=1, base=kind)  # type: ignore[arg-type]
            base = adapters.abstract_base(config, adapter, floats, mesh)
            held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(base))
            shares = {"matrices": (held - (whole - matrices)) / matrices, "all": held / whole}
            rows[f"{name}, {kind}"] = shares | {"bytes": held}
            print(f"{name:24}{kind:6}{shares['matrices']:8.3f}{shares['all']:8.3f}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
