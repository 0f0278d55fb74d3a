"""Log-likelihoods of token sequences, exact and fast: runs what planning.py has planned.

Axes: B rows, T slots of a row, S slots of a trunk, G groups of rows (parts of the batch on a mesh),
R scores of a group, C of them at a time, E table width, V vocabulary.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from chopjax import interrupts
from chopjax.compilation import compiled
from chopjax.data.tokenizer import Tokenizer, check_ids
from chopjax.launch import leader
from chopjax.models import parameters
from chopjax.models.bits import viewed_as_bits
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Past, extend
from chopjax.models.head import head_of, logits
from chopjax.models.mesh import batch_sharding, batch_shards, replicated
from chopjax.models.parameters import Params
from chopjax.models.tree_attention import Tree
from chopjax.score.layout import Budget, Shape
from chopjax.score.packing import Packed, pack_batch
from chopjax.score.planning import Request, ScoringPlan, Tokens, make_plan

IN_FLIGHT = 2  # batches that the device may have before the host waits for the first
# Measured on two cores that do 2e11 FLOPs a second; more of them only move the balance a little.
CPU_ATTENTION = 2  # times as slow as the blocks' products, FLOP for FLOP, softmax included
CPU_BATCH_TOKENS = 27  # take as long as reading the weights
CPU_BATCH_FLOPS = 1e9  # in the time that starting a batch takes
CPU_COMPILE_FLOPS = 2.4e11  # in the time of a compilation


class Score(NamedTuple):
    """The answer to one request, a value for each token of its continuation."""

    request: int  # its index
    logprobs: np.ndarray  # float32, nats
    greedy: np.ndarray  # bool: no other token was more likely

    @property
    def total(self) -> tuple[float, bool]:
        """(log-likelihood of the continuation, whether greedy decoding would write it)."""
        return float(self.logprobs.sum(dtype=np.float64)), bool(self.greedy.all())


@dataclasses.dataclass
class Statistics:
    """What an engine has done so far."""

    requests: int = 0
    batches: int = 0
    slots: int = 0  # tokens computed, padding and trunks included
    programs: int = 0  # compiled
    compile_seconds: float = 0.0


class Engine:
    """A model that scores.

    max_length: tokens that the network may read, the context length by default. mesh: where params
    are sharded; rows are spread over its batch axes. budget: see layout.py; fitted to the backend
    by default. tokenizer: gives the model's, to spell a token in a message.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        compute: Compute = Compute(),
        max_length: int | None = None,
        mesh: Mesh | None = None,
        budget: Budget | None = None,
        tokenizer: Callable[[], Tokenizer] | None = None,
    ):
        self.config, self.params, self.compute = config, params, compute
        self.max_length = max_length or config.max_positions
        self.mesh, self.tokenizer = mesh, tokenizer
        self.budget = budget or fitted_budget(config, mesh)
        self.statistics = Statistics()
        self._programs: dict[Any, Any] = {}
        self._trunk: tuple[Any, Past] | None = None
        self._viewed: Params | None = None  # see _given
        self.walk: Any = None  # of walk.py, once it is asked for

    def with_params(self, params: Params) -> Engine:
        """The same programs over other parameters of the same shapes: nothing is compiled again."""
        other = copy.copy(self)
        other.params, other.statistics = params, Statistics()
        other._trunk = other._viewed = other.walk = None
        return other

    def plan(self, requests: Sequence[Request]) -> ScoringPlan:
        """What scoring these requests will compute. Raises UserError for an id without a row in
        the embedding table."""
        plan = make_plan(requests, self.max_length, self.budget)
        self.check_ids(path.tokens for path in plan.paths)
        return plan

    def check_ids(self, sequences: Iterable[Tokens]) -> None:
        """Every id that enters a forward pass comes by here; see data/tokenizer.py."""
        check_ids(sequences, self.config.vocab_size, self.tokenizer)

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """For each (context ids, continuation ids): the continuation's log-likelihood in nats, and
        whether it is what greedy decoding would write."""
        totals = {score.request: score.total for score in self.scores(self.plan(requests))}
        return [totals[index] for index in range(len(requests))]

    def token_losses(self, sequences: Sequence[Tokens]) -> list[np.ndarray]:
        """Of each sequence of at least two ids, the loss in nats of every id but the first."""
        plan = self.plan([(ids[:1], ids[1:]) for ids in sequences])
        losses = {score.request: -score.logprobs for score in self.scores(plan)}
        return [losses[index] for index in range(len(sequences))]

    def scores(self, plan: ScoringPlan) -> Iterator[Score]:
        """Answers as they come, in the plan's order; the device works while the host packs.

        With several processes, the first calls this and the others `compute_scores`.
        """
        leader.send("scores", plan)
        yield from self._scores(plan)

    def compute_scores(self, plan: ScoringPlan) -> None:
        """What the other processes do while the first is in `scores`."""
        collections.deque(self._scores(plan), maxlen=0)

    def _scores(self, plan: ScoringPlan) -> Iterator[Score]:
        waiting: collections.deque[tuple[Packed, tuple[jax.Array, jax.Array]]] = collections.deque()
        for batch in plan.batches:
            interrupts.check()
            packed = pack_batch(plan, batch, self.budget.shards)
            past = None
            if batch.trunk:
                path, depth = batch.trunk
                past = self._past(plan.paths[path].tokens[:depth], batch.shape.past)
            waiting.append((packed, self._run(batch.shape, packed, past)))
            self.statistics.batches += 1
            self.statistics.slots += batch.shape.rows * batch.shape.length
            if len(waiting) > IN_FLIGHT:
                yield from self._answers(plan, *waiting.popleft())
        while waiting:
            yield from self._answers(plan, *waiting.popleft())

    def _answers(
        self, plan: ScoringPlan, packed: Packed, result: tuple[jax.Array, jax.Array]
    ) -> Iterator[Score]:
        logprob_GR, greedy_GR = (np.asarray(array) for array in result)
        for index, group, numbers in packed.places:
            for request in plan.paths[index].requests:
                self.statistics.requests += 1
                yield Score(request, logprob_GR[group, numbers], greedy_GR[group, numbers])

    def _run(self, shape: Shape, packed: Packed, past: Past | None) -> tuple[jax.Array, jax.Array]:
        rows = [packed.tokens_BT, packed.positions_BT, packed.ends_BT]
        rows += [packed.sources_GS, packed.targets_GS]
        groups, most = packed.sources_GS.shape
        chunk = _chunk(groups, most, self.config.vocab_size)
        steps = np.int32(-(-packed.scores // chunk))
        arguments = (self._given(), *(self.place(array) for array in rows), steps, past)
        static = {"config": self.config, "compute": self.compute, "chunk": chunk}
        logprob_GR, greedy_GR = self.program(_score_rows, shape, arguments, static)
        return logprob_GR, greedy_GR

    def _past(self, tokens: np.ndarray, slots: int) -> Past:
        """The trunk's keys and values; those of the trunk before are kept for its other batches."""
        key = (tokens.tobytes(), slots)
        if self._trunk is None or self._trunk[0] != key:
            self._trunk = None  # frees the memory of the one before
            tokens_1S = np.zeros((1, slots), np.int32)
            tokens_1S[0, : len(tokens)] = tokens
            arguments = (self._given(), tokens_1S, np.int32(len(tokens)))
            static = {"config": self.config, "compute": self.compute}
            self._trunk = key, self.program(_read_trunk, slots, arguments, static)
            self.statistics.slots += slots
        return self._trunk[1]

    def _given(self) -> Params:
        """The parameters as the programs read them."""
        if self.mesh is not None or jax.default_backend() != "cpu":
            return self.params
        if self._viewed is None:
            self._viewed = self.params | {"blocks": viewed_as_bits(self.params["blocks"])}
        return self._viewed

    def place(self, array: np.ndarray) -> Any:
        """An array whose first axis is the batch, spread over the mesh."""
        if self.mesh is None:
            return array
        sharding = batch_sharding(self.mesh)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def program(
        self,
        function: Any,
        key: Any,
        arguments: tuple[Any, ...],
        static: dict[str, Any],
        donate: str | tuple[str, ...] | None = None,
    ) -> Any:
        """Run a function; what it gives is whole on every device. Compilation is counted apart.

        key: tells calls with different shapes apart. donate: the arguments whose memory may be
        used again.
        """
        program = self._programs.get((function, key))
        if program is None:
            start = time.perf_counter()
            everywhere = None if self.mesh is None else replicated(self.mesh)
            traced = jax.jit(
                function,
                static_argnames=tuple(static),
                out_shardings=everywhere,
                donate_argnames=donate,
            )
            with self._mesh_in_force():
                lowered = traced.lower(*arguments, **static)
            program = compiled(lowered)
            self._programs[function, key] = program
            self.statistics.programs += 1
            self.statistics.compile_seconds += time.perf_counter() - start
        return program(*arguments)

    def _mesh_in_force(self) -> contextlib.AbstractContextManager[Any]:
        """For experts, whose tokens every device then sorts for itself, and for accelerators'
        kernels, which the compiler cannot divide. Anything else it divides well by where the
        arguments lie.
        """
        kernels = jax.default_backend() != "cpu"
        if self.mesh is None or not (kernels or self.config.experts is not None):
            return contextlib.nullcontext()
        return jax.set_mesh(self.mesh)


def fitted_budget(config: ModelConfig, mesh: Mesh | None = None) -> Budget:
    """A budget for the backend in use and for the size and proportions of the model."""
    per_layer = parameters.count_per_layer(config, active=True)
    # A causal row of T tokens multiplies 2 T N H numbers a token for its attention on average,
    # and one for every parameter of the block that it meets.
    attention = per_layer / (config.num_heads * config.head_dim)
    shards = 1 if mesh is None else batch_shards(mesh)
    if jax.default_backend() != "cpu":
        return Budget(
            tokens=16_384 * shards,
            shortest=128,
            attention=attention,
            batch=1024,
            shape=1 << 20,
            shards=shards,
        )
    per_token = 2 * per_layer * config.num_layers
    return Budget(
        attention=attention / CPU_ATTENTION,
        batch=round(CPU_BATCH_TOKENS + CPU_BATCH_FLOPS / per_token),
        shape=round(CPU_COMPILE_FLOPS / per_token),
        shards=shards,
    )


def _chunk(groups: int, scores: int, vocab_size: int) -> int:
    """Scores of a group whose logits exist at a time."""
    if jax.default_backend() == "cpu":
        return min(scores, 512, max(1, 6_500_000 // (groups * vocab_size)))
    return min(scores, max(1, (1 << 28) // (groups * vocab_size)))


def _score_rows(
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    ends_BT: jax.Array,
    sources_GR: jax.Array,
    targets_GR: jax.Array,
    steps: jax.Array,
    past: Past | None,
    config: ModelConfig,
    compute: Compute,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every target after its source, and whether none is greater: [G, R].

    Only the first steps · chunk of each group are computed.
    """
    G, R = sources_GR.shape
    tree = Tree(ends_BT)
    hidden_BTE, _ = extend(params, config, compute, tokens_BT, positions_BT, tree, past)
    hidden_GRE = hidden_BTE.reshape(G, R, -1)
    token_V = jnp.arange(config.vocab_size)

    def step(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # The last slice, moved back where it would reach past the end, computes some twice.
        take = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=index * chunk, slice_size=chunk, axis=1
        )
        source_GC, target_GC1 = take(sources_GR), take(targets_GR)[..., None]
        hidden_GCE = jnp.take_along_axis(hidden_GRE, source_GC[..., None], axis=1)
        # In here, a tied table is multiplied as it lies; outside, it would be copied to turn it.
        logit_GCV = logits(head_of(params, config), hidden_GCE)
        top_GC1 = logit_GCV.max(axis=-1, keepdims=True)
        log_total_GC1 = jnp.log(jnp.exp(logit_GCV - top_GC1).sum(axis=-1, keepdims=True))
        own_GC1 = jnp.take_along_axis(logit_GCV, target_GC1, axis=-1)
        logprob_GC = (own_GC1 - top_GC1 - log_total_GC1)[..., 0]
        # What argmax would choose, of equal ones the first; XLA's own argmax is slow on CPUs.
        ahead_GCV = (logit_GCV == own_GC1) & (token_V < target_GC1)
        beaten_GC = ((logit_GCV > own_GC1) | ahead_GCV).any(axis=-1)
        place = functools.partial(
            jax.lax.dynamic_update_slice_in_dim, start_index=index * chunk, axis=1
        )
        return place(carry[0], logprob_GC), place(carry[1], ~beaten_GC)

    nothing = jnp.zeros((G, R), jnp.float32), jnp.zeros((G, R), bool)
    logprob_GR, greedy_GR = jax.lax.fori_loop(0, steps, step, nothing)
    return logprob_GR, greedy_GR


def _read_trunk(
    params: Params, tokens_1S: jax.Array, length: jax.Array, config: ModelConfig, compute: Compute
) -> Past:
    """Keys and values of the first `length` tokens."""
    slots_S = jnp.arange(tokens_1S.shape[1])
    _, (key, value) = extend(params, config, compute, tokens_1S, slots_S[None], Tree())
    return Past(key, value, (slots_S < length)[None], slots_S[None])
