"""Which forward passes score a set of requests: arithmetic on integers, no device in sight.

Requests that begin alike share the tokens of their beginning. Sorted, the requests are the paths
of a prefix tree; a row of the network holds some of them as a packed tree, each node once, and an
attention mask makes it exact (packing.py). Where so many requests share a beginning that they need
many rows, the beginning becomes a trunk: computed once, its keys and values read by every row.

Rows and trunks have few different lengths, chosen for the least work: few shapes to compile, known
before anything runs (layout.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from chopjax.score.layout import Budget, Shape, lay_out, row_length

# Neighbours that share less than this part of a path may part: the freedom to pack rows tightly is
# worth more than the repeated tokens.
MIN_SHARED = 1 / 3
# A trunk costs a pass of its own and a longer past for every row. Shorter ones are recomputed.
MIN_TRUNK = 64
Tokens = Sequence[int] | np.ndarray
Request = tuple[Tokens, Tokens]  # context ids, continuation ids


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """A distinct thing to compute: the log-probabilities of the last `scored` of `tokens` (int32).

    The network reads all tokens but the last. requests: who asked for it.
    """

    tokens: np.ndarray
    scored: int
    requests: tuple[int, ...]

    @property
    def read(self) -> np.ndarray:
        return self.tokens[:-1]

    @property
    def length(self) -> int:
        """Tokens that the network reads."""
        return len(self.tokens) - 1

    @property
    def context(self) -> int:
        """Tokens that the network reads before the first whose output is scored."""
        return self.length - self.scored


@dataclasses.dataclass(frozen=True)
class ScoringBatch:
    """One forward pass: rows of paths (indices into the plan's, ascending), behind a trunk or not.

    trunk: (a path that begins with it, its length); None for no trunk.
    """

    shape: Shape
    trunk: tuple[int, int] | None
    rows: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class ScoringPlan:
    paths: tuple[Path, ...]
    batches: tuple[ScoringBatch, ...]

    @property
    def shapes(self) -> list[Shape]:
        """Every shape that will be compiled, in the order in which batches come."""
        return list(dict.fromkeys(batch.shape for batch in self.batches))

    @property
    def slots(self) -> int:
        """Tokens that will be computed, padding and trunks included."""
        trunks = {batch.trunk: batch.shape.past for batch in self.batches}
        return sum(trunks.values()) + sum(b.shape.rows * b.shape.length for b in self.batches)


def make_plan(requests: Sequence[Request], max_length: int, budget: Budget) -> ScoringPlan:
    """Batches that score every request once, equal ones together.

    A request that is longer than max_length + 1 tokens loses tokens on the left, as in the
    harness. Raises ValueError for an empty context or continuation and for a continuation longer
    than max_length.
    """
    paths = distinct_paths(requests, max_length)
    shared = shared_lengths(paths)
    capacity = max(1, budget.tokens // budget.shards // 4)  # of a tree that is kept in one row
    rest: list[int] = []
    spans = trunks(paths, shared, capacity, budget)
    position = 0
    for start, stop, _ in spans:
        rest += range(position, start)
        position = stop
    rest += range(position, len(paths))
    batches: list[ScoringBatch] = []
    alone = bunch(paths, shared, rest, 0, capacity)
    for piece in lay_out([[size for size, _ in alone]], [0], budget) if alone else []:
        rows = tuple(_paths_of(alone, row) for row in piece.rows)
        batches.append(ScoringBatch(piece.shape, None, rows))
    groups = [
        bunch(paths, shared, range(start, stop), depth, capacity) for start, stop, depth in spans
    ]
    depths = [depth for _, _, depth in spans]
    sizes = [[size for size, _ in group] for group in groups]
    for piece in lay_out(sizes, depths, budget) if groups else []:
        start, _, depth = spans[piece.group]
        rows = tuple(_paths_of(groups[piece.group], row) for row in piece.rows)
        batches.append(ScoringBatch(piece.shape, (start, depth), rows))
    # The largest first: what does not fit into memory fails at once. A trunk's stay together.
    batches.sort(
        key=lambda b: (b.shape.past + b.shape.length, b.shape, b.trunk or (0, 0)), reverse=True
    )
    return ScoringPlan(paths, tuple(batches))


def _paths_of(bunches: list[tuple[int, list[int]]], row: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(path for index in row for path in bunches[index][1]))


def distinct_paths(requests: Sequence[Request], max_length: int) -> tuple[Path, ...]:
    """Requests cut to the context length; equal ones are one. Sorted by what the network reads."""
    askers: dict[tuple[bytes, bytes, int], list[int]] = {}
    for index, (context, continuation) in enumerate(requests):
        if not len(context) or not len(continuation):
            raise ValueError(f"request {index}: context and continuation need a token each")
        if len(continuation) > max_length:
            raise ValueError(f"request {index}: the continuation is longer than {max_length}")
        parts = [np.asarray(part, np.int32) for part in (context, continuation)]
        # Big-endian bytes compare as the numbers do.
        joined = np.concatenate(parts)[-(max_length + 1) :].astype(">i4")
        key = (joined[:-1].tobytes(), joined[-1:].tobytes(), len(continuation))
        askers.setdefault(key, []).append(index)
    return tuple(
        Path(np.frombuffer(read + last, ">i4").astype(np.int32), scored, tuple(asking))
        for (read, last, scored), asking in sorted(askers.items())
    )


def common_length(before: np.ndarray, after: np.ndarray) -> int:
    """How many of the first elements agree."""
    limit = min(len(before), len(after))
    differ = before[:limit] != after[:limit]
    first = int(differ.argmax()) if limit else 0
    return first if limit and differ[first] else limit


def shared_lengths(paths: Sequence[Path]) -> list[int]:
    """How many tokens each path reads that its predecessor reads too; 0 for the first."""
    pairs = itertools.pairwise(paths)
    return [0, *(common_length(before.read, after.read) for before, after in pairs)][: len(paths)]


@dataclasses.dataclass
class _Node:
    """A node of the prefix tree while `trunks` walks over the paths."""

    depth: int
    start: int
    context: int = 1 << 60  # the shortest context below
    saved: float = 0.0  # tokens, by the trunks chosen below
    chosen: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)

    def adopt(self, child: _Node) -> None:
        self.context = min(self.context, child.context)
        self.saved += child.saved
        self.chosen += child.chosen


def trunks(
    paths: Sequence[Path], shared: Sequence[int], row: int, budget: Budget
) -> list[tuple[int, int, int]]:
    """(start, stop, depth): paths start..stop-1 share their first `depth` tokens as a trunk.

    Every interval of neighbours with a common beginning is a node of the prefix tree. A node as a
    trunk saves its depth for every row, which would have about `row` tokens, and the attention of
    such long rows; it costs a pass, and attention to a past. Bottom-up, a node becomes one trunk if
    that saves more than the trunks below it together. There are none unless all of them together
    save a compilation.
    """
    fresh = [0]  # running sum of tokens that a path reads and its predecessor does not
    for path, common in zip(paths, shared, strict=True):
        fresh.append(fresh[-1] + path.length - common)

    def close(node: _Node, stop: int) -> None:
        depth = min(node.depth, node.context)
        below = fresh[stop] - fresh[node.start + 1] + paths[node.start].length - depth
        fresh_in_row = max(1, min(below, max(row - depth, row // 2)))
        rows = math.ceil(below / fresh_in_row)
        tokens = depth * rows - row_length(depth, budget) - budget.batch
        looked_at = rows * (depth + fresh_in_row) ** 2 - 2 * below * depth - depth**2
        saved = tokens + looked_at / budget.attention
        if depth >= MIN_TRUNK and saved > node.saved:
            node.saved, node.chosen = saved, [(node.start, stop, depth)]

    stack = [_Node(0, 0)]
    for index, path in enumerate(paths):
        closed = None
        while stack[-1].depth > shared[index]:
            if closed:
                stack[-1].adopt(closed)
            closed = stack.pop()
            close(closed, index)
        if stack[-1].depth < shared[index]:
            start = closed.start if closed else index - 1
            stack.append(_Node(shared[index], start, paths[start].context))
        if closed:
            stack[-1].adopt(closed)
        stack[-1].context = min(stack[-1].context, path.context)
    while len(stack) > 1:
        closed = stack.pop()
        close(closed, len(paths))
        stack[-1].adopt(closed)
    return stack[0].chosen if stack[0].saved > budget.shape else []


def bunch(
    paths: Sequence[Path], shared: Sequence[int], chosen: Iterable[int], depth: int, capacity: int
) -> list[tuple[int, list[int]]]:
    """Neighbouring paths that share tokens, as (slots needed, path indices).

    A bunch takes as many slots as its tree has nodes below `depth`, or as it has scores to give if
    those are more: at most `capacity` or, where that is more, what its first path needs and half of
    `capacity`.
    """
    bunches: list[tuple[int, list[int]]] = []
    nodes = scores = limit = 0
    previous = -2
    for index in chosen:
        path = paths[index]
        common = shared[index] if previous == index - 1 else 0
        more_nodes, more_scores = path.length - max(common, depth), path.scored
        apart = common - depth < MIN_SHARED * (path.length - depth)
        if previous < 0 or apart or max(nodes + more_nodes, scores + more_scores) > limit:
            bunches.append((0, []))
            nodes, scores, more_nodes = 0, 0, path.length - depth
            limit = max(capacity, more_nodes + capacity // 2)
        nodes, scores = nodes + more_nodes, scores + more_scores
        bunches[-1] = (max(nodes, scores), [*bunches[-1][1], index])
        previous = index
    return bunches
