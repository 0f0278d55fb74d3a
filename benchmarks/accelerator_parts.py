"""What the processes of accelerator.py do: `MAKERS` has what answers each one's requests.

A part that cannot run here answers {"skipped": why}. jax and torch are imported in here alone, each
where it is needed: a process has one of them, but that of the scorer.

Axes: B rows, T tokens of a row, N query heads, K key/value heads, H head size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from workers import Step, peak_memory, reset_peak_memory

from chopjax.checkpoint.published import CONFIGS

# So small that a weight in bfloat16 stays what it is: every step does all of its work, and its loss
# depends on its tokens alone, whatever ran before it.
RATE = 1e-30
B1, B2, EPSILON, DECAY, CLIP = 0.9, 0.95, 1e-8, 0.1, 1.0
DROPOUT = 0.05
MATRICES = ("gate", "up", "down")
ROUNDING = 2.0**-8  # of bfloat16, relative

Answer = Callable[[Any], dict[str, Any]]
Parity = dict[str, Any]  # a case: H, N, K, window, documents


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured. Shapes are what a config.json holds."""

    chop: dict[str, Any]  # of training and adapters
    lengths: tuple[int, ...]  # T of training; adapters take the first
    tokens: int  # of a step
    rank: int
    scored: str  # of score.py's shapes
    vocabulary: int  # of the made-up tokenizer
    documents: int  # of each task
    batch_sizes: str  # of the harness's hf backend, to choose from
    latency: dict[str, Any]
    passes: tuple[tuple[int, int], ...]  # B, T
    parity: tuple[int, int]  # T, and how many of the cases
    rounds: int
    steps: int  # in each round


SEVEN = CONFIGS["meta-llama/Llama-2-7b-hf"] | {"bos_token_id": None, "eos_token_id": None}
SIZES = {
    "full": Sizes(
        # Just CHOP's half; its context as long as the longest rows here.
        chop=SEVEN | {"num_hidden_layers": 16},
        lengths=(2048, 4096),
        tokens=4096,
        rank=16,
        scored="1b",
        vocabulary=32_000,
        documents=400,
        batch_sizes="16,64",
        latency=SEVEN,
        passes=((1, 2048), (16, 512)),
        parity=(1024, 10),
        rounds=5,
        steps=3,
    )
}
LITTLE = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
SIZES["tiny"] = Sizes(
    chop=SEVEN | LITTLE | {"num_hidden_layers": 2},
    lengths=(32,),
    tokens=64,
    rank=2,
    scored="tiny",
    vocabulary=256,
    documents=4,
    batch_sizes="4",
    latency=SEVEN | LITTLE | {"num_hidden_layers": 2},
    passes=((2, 32),),
    parity=(128, 2),
    rounds=1,
    steps=1,
)


def parity_cases(sizes: Sizes) -> list[Parity]:
    """Windows, documents in a row, grouped heads and head sizes."""
    length, count = sizes.parity
    window, many, few = length // 5, 8, 2
    cases = [
        (64, many, None, False),
        (256, few, window, True),
        (64, many, window, False),
        (64, many, None, True),
        (64, many, window, True),
        (64, few, window, True),
        (80, many, None, False),
        (128, few, None, False),
        (128, few, window, True),
        (256, few, None, False),
    ]
    names = ("H", "K", "window", "documents")
    return [dict(zip(names, case, strict=True)) | {"N": many} for case in cases[:count]]


@dataclasses.dataclass(frozen=True)
class Job:
    """What every process is told. folder: where checkpoints and documents are. data, tokenizer:
    the user's documents and what reads them, or None."""

    folder: str
    size: str
    platform: str
    data: str | None = None
    tokenizer: str | None = None

    @property
    def sizes(self) -> Sizes:
        return SIZES[self.size]

    @property
    def checkpoint(self) -> Path:
        return Path(self.folder) / "chop"

    def as_argument(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def rows(self, length: int) -> int:
        return max(1, self.sizes.tokens // length)


# ------------------------------------------------------------------------------ The device


def probe(job: Job) -> Answer:
    """What is here."""
    import jax

    from chopjax.hardware import PEAK_BFLOAT16
    from chopjax.models.attention import OWN

    device = jax.devices()[0]
    known = [name for name in PEAK_BFLOAT16 if device.device_kind.startswith(name)]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    found = {
        "platform": jax.default_backend(),
        "kernel": OWN.get(jax.default_backend(), "xla"),
        "kind": device.device_kind,
        "count": len(jax.devices()),
        "bytes": memory,
        "peak": PEAK_BFLOAT16[max(known, key=len)] if known else None,
    }
    return lambda _: found


def write(job: Job) -> Answer:
    """The chop of random weights that training and adapters begin with, in bfloat16."""
    from random_checkpoint import write_checkpoint

    def answer(_: Any) -> dict[str, Any]:
        job.checkpoint.mkdir(parents=True)
        # Twice the usual deviation: losses then differ where programs do.
        write_checkpoint(job.checkpoint, job.sizes.chop, "bfloat16", 2)
        return {}

    return answer


# ------------------------------------------------------------------------------ Training steps


def measured(step: Step, tokens: Callable[[], np.ndarray], steps: int) -> dict[str, Any]:
    """Seconds and losses of so many steps."""
    seconds, losses = [], []
    for _ in range(steps):
        batch = tokens()
        begun = time.perf_counter()
        losses.append(step(batch))
        seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds, "losses": losses}


def drawn(job: Job, length: int) -> Callable[[], np.ndarray]:
    """Batches [B, T+1] of random tokens: of one length the same ones for everybody."""
    draw = np.random.default_rng(length)
    shape = (job.rows(length), length + 1)
    return lambda: draw.integers(0, job.sizes.chop["vocab_size"], shape, dtype=np.int32)


def our_settings(job: Job, base: str | None = None) -> Any:
    """Of `chopjax train` in bfloat16. base: that of adapters; None: all weights are trained."""
    from chopjax.models.adapter_settings import AdapterSettings
    from chopjax.train.settings import (
        ComputeSettings,
        MeshSettings,
        OptimizerSettings,
        Settings,
    )

    adapter = AdapterSettings()
    if base is not None:
        adapter = AdapterSettings(rank=job.sizes.rank, dropout=DROPOUT, base=base)  # type: ignore[arg-type]
    return Settings(
        model=str(job.checkpoint),
        adapter=adapter,
        mesh=MeshSettings(data=1, fsdp=-1),
        compute=ComputeSettings(dtype="bfloat16", param_dtype="bfloat16"),
        optimizer=OptimizerSettings(
            name="adamw",
            peak_learning_rate=RATE,
            final_fraction=1.0,
            b1=B1,
            b2=B2,
            weight_decay=DECAY if base is None else 0.0,
            clip_norm=CLIP,
            # Adapters are float32, and with them their moments, on both sides.
            momentum_dtype="bfloat16" if base is None else "float32",
        ),
    )


def ours(job: Job) -> Answer:
    """Requests: kind ("full", "float", "nf4", "int8"), attention, length, steps."""
    import jax
    from our_steps import Run

    from chopjax.models.attention import why_not
    from chopjax.models.families import translate
    from chopjax.models.scores import all_scores

    runs: dict[str, Any] = {}
    programs: dict[Any, Any] = {}
    config = translate(job.sizes.chop)[1]

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        kind, attention, length = (request[key] for key in ("kind", "attention", "length"))
        if attention != "xla":
            asked = (attention, length, jax.numpy.bfloat16, config.head_dim)
            if refused := why_not(*asked, all_scores(config), jax.default_backend()):
                return {"skipped": refused}
        key = (kind, attention, length)
        began = time.perf_counter()
        if kind not in runs:
            base = None if kind == "full" else kind
            runs[kind] = Run(job.checkpoint, our_settings(job, base))
        if key not in programs:
            program = runs[kind].program(job.rows(length), length, attention)
            programs[key] = program, drawn(job, length)
        program, tokens = programs[key]
        prepared = time.perf_counter() - began
        try:
            found = measured(program.step, tokens, request["steps"])
        except Exception:
            runs[kind].begin()  # a step that fails may have taken the state with it
            raise
        facts = {"memory": program.memory, "flops": program.flops, "formula": program.formula}
        return found | facts | {"prepared": prepared}

    return answer


def torch_side(job: Job) -> Answer:
    """Requests: kind ("full", "float", "nf4"), attention (whether compiled), length, steps. A
    process is asked for one kind alone."""
    import torch
    from torch_steps import by_decay, make_step, open_model, with_lora

    if job.platform == "gpu" and not torch.cuda.is_available():
        return lambda _: {"skipped": f"torch {torch.__version__} sees no GPU here"}
    device = "cuda" if job.platform == "gpu" else "cpu"
    optimizer = {"rate": RATE, "betas": (B1, B2), "epsilon": EPSILON, "clip": CLIP}
    steps: dict[str, Step] = {}
    tokens: dict[int, Callable[[], np.ndarray]] = {}

    def made(kind: str, compiled: bool) -> Step:
        if kind == "full":
            model = open_model(job.checkpoint, "bfloat16").to(device).train()
            run = torch.compile(model, dynamic=False) if compiled else model
            return make_step(model, by_decay(model, DECAY), run=run, **optimizer)
        options: dict[str, Any] = {}
        if kind == "nf4":
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            options["device_map"] = {"": device}
        base = open_model(job.checkpoint, "bfloat16", **options)
        model = with_lora(base if options else base.to(device), job.sizes.rank, DROPOUT, MATRICES)
        trained = [p for p in model.parameters() if p.requires_grad]
        return make_step(model, trained, autocast=True, **optimizer)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        kind, length = request["kind"], request["length"]
        began = time.perf_counter()
        if kind not in steps:
            steps[kind] = made(kind, request["attention"] == "compiled")
        if length not in tokens:
            tokens[length] = drawn(job, length)
        prepared = time.perf_counter() - began
        if device == "cpu":
            reset_peak_memory()
        else:
            torch.cuda.reset_peak_memory_stats()
        found = measured(steps[kind], tokens[length], request["steps"])
        if device == "cpu":
            return found | {"memory": peak_memory(), "prepared": prepared}
        memory = torch.cuda.max_memory_allocated()
        torch.cuda.empty_cache()  # for the others on this device
        return found | {"memory": memory, "prepared": prepared}

    return answer


# ------------------------------------------------------------------------------ Scoring


def score(job: Job) -> Answer:
    """Requests: task. Random weights, score.py's own measurement."""
    import score as scoring
    from synthetic_tasks import write_documents, write_tokenizer

    folder, sizes = Path(job.folder) / "score", job.sizes
    data, tokenizer = folder / "data", folder / "tokenizer"
    if job.data and job.tokenizer:
        data, tokenizer = Path(job.data), Path(job.tokenizer)
    elif not folder.exists():
        write_tokenizer(tokenizer, sizes.vocabulary)
        write_documents(data, sizes.documents, sizes.vocabulary // 2)
    model = folder / "model"
    if not model.exists():
        shape = scoring.SHAPES[sizes.scored]
        scoring.write_random(model, tokenizer, shape, "bfloat16")
    ours = scoring.open_ours(str(model), "bfloat16")
    peer, without, rate = None, "", 0.0
    if job.platform == "tpu":
        without = "no peer: torch computes on no TPU"
    else:
        try:
            device = "cuda" if job.platform == "gpu" else "cpu"
            peer = scoring.open_peer(str(model), "bfloat16", device)
            rate = max(scoring.matmul_rates("bfloat16").values())
        except Exception as error:
            without = f"no peer: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    arguments = argparse.Namespace(batch_sizes=sizes.batch_sizes, rounds=2, alone=False)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        name = request["task"]
        group = scoring.read_tasks(folder, data, name, sizes.documents)
        if peer is not None:
            return scoring.measure(name, group, ours, peer, rate, arguments)
        first, answers = scoring.timed(ours, group)
        seconds, _ = scoring.timed(ours, group)
        documents = sum(len(samples) for samples in answers["samples"].values())
        found = {"task": name, "documents": documents, "ours": documents / seconds.wall}
        return found | {"first run": first, "says": without}

    return answer


# ------------------------------------------------------------------------------ Latency


def latency(job: Job) -> Answer:
    """Requests: batch, length. All layers and half of them, chopjax.latency's own measurement."""
    import jax

    from chopjax.latency.measure import measure
    from chopjax.latency.models import first_layers
    from chopjax.models.compute import Compute
    from chopjax.models.decoder import init
    from chopjax.models.families import translate

    config = translate(job.sizes.latency)[1]
    params = jax.jit(lambda key: init(config, key, "bfloat16"))(jax.random.key(0))
    half = config.num_layers // 2
    models = {
        f"{config.num_layers} layers": (params, config),
        f"{half} layers": first_layers(params, config, half),
    }

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        shape = request["batch"], request["length"]
        compute, phases = Compute(dtype="bfloat16"), ("prefill", "decode")
        found = measure(models, *shape, compute, 1 + job.sizes.rounds, phases)
        return {
            name: {phase: dataclasses.asdict(timing) for phase, timing in timings.items()}
            for name, timings in found.items()
        }

    return answer


# ------------------------------------------------------------------------------ Parity


def parity(job: Job) -> Answer:
    """Requests: a case of `parity_cases`. The device's own attention beside xla's, both in
    bfloat16, as differences from xla's in float32.

    Differences are the largest, relative to the largest number there is. The bound is twice what
    xla's own bfloat16 is away, and one rounding: two correct programs differ by no more.
    """
    import jax
    import jax.numpy as jnp

    from chopjax.models.attention import OWN, attend, why_not
    from chopjax.models.scores import Scores

    backend = jax.default_backend()
    own, T, B = OWN[backend], job.sizes.parity[0], 2

    def answer(case: Parity) -> dict[str, Any]:
        H, scores = case["H"], Scores(window=case["window"])
        if refused := why_not(own, T, jnp.bfloat16, H, [scores], backend):
            return {"skipped": refused}
        draw = np.random.default_rng(0)
        heads = (case["N"], case["K"], case["K"], case["N"])
        arrays = [jnp.asarray(draw.normal(size=(B, T, n, H)), jnp.bfloat16) for n in heads]
        segments = None
        if case["documents"]:
            segments = jnp.asarray(np.sort(draw.integers(1, 5, (B, T))), jnp.int32)

        def of(implementation: str, dtype: Any, arrays: Any) -> Any:
            def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                return attend(q, k, v, segments, implementation, scores)

            q, k, v, ct = (x.astype(dtype) for x in arrays)
            with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
                value, back = jax.vjp(run, q, k, v)
                gradients = back(ct)
            names = ("value", "d query", "d key", "d value")
            found = (x.astype(jnp.float32) for x in (value, *gradients))
            return dict(zip(names, found, strict=True))

        ways = (("xla", jnp.float32), ("xla", jnp.bfloat16), (own, jnp.bfloat16))
        program = jax.jit(lambda arrays: [of(*way, arrays) for way in ways])
        exact, plain, fast = jax.device_get(program(arrays))

        def away(found: Mapping[str, np.ndarray], name: str) -> float:
            return float(np.abs(found[name] - exact[name]).max() / np.abs(exact[name]).max())

        compared = {
            name: {
                "own": away(fast, name),
                "xla": (xla := away(plain, name)),
                "bound": 2 * xla + ROUNDING,
            }
            for name in exact
        }
        holds = all(each["own"] <= each["bound"] for each in compared.values())
        return {"kernel": own, "differences": compared, "holds": holds}

    return answer


MAKERS: dict[str, Callable[[Job], Answer]] = {
    "probe": probe,
    "write": write,
    "ours": ours,
    "torch": torch_side,
    "score": score,
    "latency": latency,
    "parity": parity,
}
