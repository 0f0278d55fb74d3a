"""Time and memory of models side by side: a forward pass, prefill, and a token of decoding.

Axes: B batch, T time, C positions whose logits exist at a time, E table width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chopjax import interrupts
from chopjax.compilation import compiled
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import hidden_states
from chopjax.models.flops import decode_per_token, forward_per_token
from chopjax.models.head import head_of, logits
from chopjax.models.parameters import EXPERTS, Params
from chopjax.score.engine import Engine
from chopjax.score.layout import Budget
from chopjax.score.next_token import LIKELIEST
from chopjax.score.steps import STRIDE, State, decode, prefill
from chopjax.score.walk import Walk, of_engine, walks

PHASES = {
    "forward": "hidden states and logits of all positions, as for scoring",
    "prefill": "a prompt into the key/value cache, logits of its last position",
    "decode": "one more token after the prompt, for every sequence of the batch",
}
ROUNDS = 11
LOGITS = 1 << 24  # that exist at a time in a forward pass
Models = Mapping[str, tuple[Params, ModelConfig]]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one pass: the median over the rounds, and the quartiles."""

    seconds: float
    low: float
    high: float
    memory: int | None  # bytes: parameters, cache, activations; None where XLA does not say
    flops: int  # that the pass asks for, by models/flops.py
    traffic: int  # bytes that it has to read at least: parameters and cache, once


@dataclasses.dataclass(frozen=True)
class Line:
    """Least squares: seconds = intercept + slope · layers."""

    intercept: float
    slope: float
    r_squared: float


def measure(
    models: Models,
    batch: int,
    length: int,
    compute: Compute = Compute(),
    rounds: int = ROUNDS,
    phases: Sequence[str] = tuple(PHASES),
    advance: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Timing]]:
    """Model → phase → timing, over [batch, length] tokens.

    The models take turns, so that a drift of the machine's speed meets all of them alike;
    compilation and a first turn do not count. advance: called after each turn of a phase.
    """
    passes = {
        (name, phase): _PASSES[phase](params, config, compute, batch, length)
        for phase in phases
        for name, (params, config) in models.items()
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in passes}
    for turn in range(rounds + 1):
        for key, (run, _) in passes.items():
            interrupts.check()
            start = time.perf_counter()
            run()
            if turn:
                seconds[key].append(time.perf_counter() - start)
        advance()
    timings: dict[str, dict[str, Timing]] = {name: {} for name in models}
    for (name, phase), times in seconds.items():
        steps = STRIDE if phase == "decode" else 1
        low, high = np.quantile(times, (0.25, 0.75)) / steps
        median = statistics.median(times) / steps
        params, config = models[name]
        flops, traffic = _work(params, config, batch, length, phase)
        memory = passes[name, phase][1]
        timings[name][phase] = Timing(median, float(low), float(high), memory, flops, traffic)
    return timings


def fit(layers: Sequence[int], seconds: Sequence[float]) -> Line | None:
    """The line through measured times; None where all have the same number of layers."""
    x, y = np.array(layers, np.float64), np.array(seconds, np.float64)
    if len(set(layers)) < 2:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    residual = ((y - intercept - slope * x) ** 2).sum()
    spread = ((y - y.mean()) ** 2).sum()
    r_squared = 1 - residual / spread if spread else 1.0
    return Line(float(intercept), float(slope), float(r_squared))


# --------------------------------------------------------------------------------- The passes

Pass = tuple[Callable[[], Any], int | None]  # (runs once and waits, bytes of memory)


def _forward_pass(
    params: Params, config: ModelConfig, compute: Compute, batch: int, length: int
) -> Pass:
    tokens_BT = jnp.zeros((batch, length), jnp.int32)
    program = _compiled(_forward, (params, tokens_BT), config=config, compute=compute)
    return lambda: jax.block_until_ready(program(params, tokens_BT)), _memory(program)


def _forward(
    params: Params, tokens_BT: jax.Array, config: ModelConfig, compute: Compute
) -> jax.Array:
    """Of every position the logarithm of the sum of its exponentiated logits [B, T]: the least
    that needs them all, without keeping them."""
    hidden_BTE = hidden_states(params, config, compute, tokens_BT)
    head = head_of(params, config)
    B, T, E = hidden_BTE.shape
    most = max(1, LOGITS // (B * config.vocab_size))
    C = max(size for size in range(1, T + 1) if T % size == 0 and size <= most)

    def chunk(hidden_BCE: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(logits(head, hidden_BCE), axis=-1)

    chunks = jnp.moveaxis(hidden_BTE.reshape(B, T // C, C, E), 1, 0)
    return jnp.moveaxis(jax.lax.map(chunk, chunks), 0, 1).reshape(B, T)


def _prefill_pass(
    params: Params, config: ModelConfig, compute: Compute, batch: int, length: int
) -> Pass:
    tokens_BS = jnp.zeros((batch, length), jnp.int32)
    length_B = jnp.full(batch, length, jnp.int32)
    static: dict[str, Any] = {"config": config, "compute": compute, "slots": length + STRIDE}
    arguments = (params, tokens_BS, length_B, None)
    program = _compiled(prefill, arguments, **static)
    return lambda: jax.block_until_ready(program(*arguments)), _memory(program)


def _decode_pass(
    params: Params, config: ModelConfig, compute: Compute, batch: int, length: int
) -> Pass:
    """STRIDE tokens, as text is generated here; the cache of one run is the next one's."""
    engine = Engine(config, params, compute, budget=Budget())  # no batches are made
    length_B = jnp.full(batch, length, jnp.int32)
    state = State(jnp.zeros(batch, jnp.int32), length_B + 1, length_B, None, None)
    if walks(engine):
        return _walk_pass(of_engine(engine), state, length + STRIDE)
    shape = (config.num_layers, batch, length + STRIDE, config.num_kv_heads, config.head_dim)
    held = [(jnp.zeros(shape, compute.dtype), jnp.zeros(shape, compute.dtype))]
    static: dict[str, Any] = {"config": config, "compute": compute}
    program = _compiled(decode, (params, state, held[0]), donate="cache", **static)

    def run() -> None:
        _, _, held[0] = jax.block_until_ready(program(params, state, held[0]))

    return run, _memory(program)


def _walk_pass(walk: Walk, state: State, slots: int) -> Pass:
    held = [walk.empty_cache(len(state.token_B), slots)]
    weights = sum(array.nbytes for array in jax.tree.leaves((walk.outer, walk.blocks)))
    nbytes = weights + sum(array.nbytes for array in jax.tree.leaves(held[0]))

    def run() -> None:
        held[0] = jax.block_until_ready(walk.decode(state, held[0], LIKELIEST))[2]

    return run, nbytes


_PASSES = {"forward": _forward_pass, "prefill": _prefill_pass, "decode": _decode_pass}


def _compiled(
    function: Any, arguments: tuple[Any, ...], donate: str | None = None, **static: Any
) -> Any:
    jitted = jax.jit(functools.partial(function, **static), donate_argnames=donate)
    return compiled(jitted.lower(*arguments))


def _memory(program: Any) -> int | None:
    """Bytes that a program needs: arguments, outputs and what lies between."""
    sizes = program.memory_analysis()
    if sizes is None:
        return None
    return int(
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def _work(
    params: Params, config: ModelConfig, batch: int, length: int, phase: str
) -> tuple[int, int]:
    """(FLOPs, bytes to read) of a pass. Of experts, those are read that some token is sent to; how
    many that is if every one is as likely."""
    weights = sum(array.nbytes for array in jax.tree.leaves(params))
    if (experts := config.experts) is not None:
        tokens = batch if phase == "decode" else batch * length
        unread = (1 - experts.per_token / experts.count) ** tokens
        experts_own = [params["blocks"]["mlp"][name] for name in EXPERTS]
        weights -= round(unread * sum(array.nbytes for array in jax.tree.leaves(experts_own)))
    if not config.tie_embeddings:
        weights -= params["embed"]["embedding"].nbytes  # a few rows of it are read
    itemsize = np.dtype(params["embed"]["embedding"].dtype).itemsize
    head = 2 * config.table_dim * config.vocab_size
    if phase == "decode":
        slots = length + STRIDE
        seen = sum(min(layer.window or slots, slots) for layer in config.layers)
        cache = 2 * seen * batch * config.num_kv_heads * config.head_dim
        return batch * decode_per_token(config, slots), weights + cache * itemsize
    flops = batch * length * forward_per_token(config, length)
    if phase == "prefill":
        flops -= batch * (length - 1) * head
    return flops, weights
