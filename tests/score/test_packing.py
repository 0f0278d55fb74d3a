"""Packed batches against the prefix tree written out, node by node."""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np

from chopjax.score.layout import Shape
from chopjax.score.packing import pack_batch
from chopjax.score.planning import ScoringBatch, ScoringPlan, distinct_paths

Prefix = tuple[int, ...]  # a node of the tree: all tokens from the text's beginning to its own


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch made by hand: any paths in any rows, tight or not."""

    plan: ScoringPlan
    batch: ScoringBatch
    groups: int

    @property
    def depth(self) -> int:
        return self.batch.trunk[1] if self.batch.trunk else 0

    def nodes(self, row: int) -> list[Prefix]:
        """In preorder, which for prefixes is the order of the alphabet."""
        indices = self.batch.rows[row] if row < len(self.batch.rows) else ()
        reads = [self.plan.paths[index].read.tolist() for index in indices]
        return sorted(
            {tuple(read[:n]) for read in reads for n in range(self.depth + 1, len(read) + 1)}
        )

    def wanted(self, index: int) -> list[tuple[Prefix, int]]:
        """(after what, which token) of every score of a path."""
        path = self.plan.paths[index]
        every = path.tokens.tolist()
        return [(tuple(every[:n]), every[n]) for n in range(path.context + 1, len(every))]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    few = st.lists(st.integers(0, 2), min_size=1, max_size=6)
    trunk = draw(st.lists(st.integers(0, 2), max_size=5))
    asked = draw(st.lists(st.tuples(few, few), min_size=1, max_size=12))
    paths = distinct_paths([(trunk + context, target) for context, target in asked], 50)
    rows: dict[int, list[int]] = {}
    for index in range(len(paths)):
        rows.setdefault(draw(st.integers(0, 3)), []).append(index)
    groups = draw(st.integers(1, 3))
    height = -(-len(rows) // groups) * groups + groups * draw(st.integers(0, 1))
    plan = ScoringPlan(paths, ())
    batch = ScoringBatch(
        Shape(8 if trunk else 0, 0, height),
        (0, len(trunk)) if trunk else None,
        tuple(map(tuple, rows.values())),
    )
    case = Case(plan, batch, groups)
    needed = [len(case.nodes(row)) for row in range(len(rows))]
    needed += [sum(paths[index].scored for index in row) for row in batch.rows]
    length = max(needed) + draw(st.integers(0, 3))
    shape = dataclasses.replace(batch.shape, length=length)
    return Case(plan, dataclasses.replace(batch, shape=shape), groups)


@hypothesis.given(cases())
@hypothesis.settings(max_examples=50, deadline=None)
def test_rows_are_the_tree_in_preorder(case: Case) -> None:
    shape = case.batch.shape
    packed = pack_batch(case.plan, case.batch, case.groups)
    for row in range(shape.rows):
        nodes = case.nodes(row)
        used = len(nodes)
        assert packed.tokens_BT[row, :used].tolist() == [node[-1] for node in nodes]
        assert packed.positions_BT[row, :used].tolist() == [len(node) - 1 for node in nodes]
        assert not packed.tokens_BT[row, used:].any()
        assert not packed.positions_BT[row, used:].any()


@hypothesis.given(cases())
@hypothesis.settings(max_examples=50, deadline=None)
def test_a_node_sees_its_ancestors_and_nothing_else(case: Case) -> None:
    shape = case.batch.shape
    packed = pack_batch(case.plan, case.batch, case.groups)
    for row in range(shape.rows):
        nodes = case.nodes(row)
        ends_T = packed.ends_BT[row]
        for q in range(shape.length):
            seen = [k for k in range(shape.length) if k <= q < ends_T[k]]
            if q >= len(nodes):
                assert seen == [q]  # unused: no row of the softmax may be empty
                continue
            assert seen == [k for k, node in enumerate(nodes) if nodes[q][: len(node)] == node]
            # Read along the path, with the trunk before it, it is the text from its beginning.
            assert (*nodes[q][: case.depth], *packed.tokens_BT[row, seen]) == nodes[q]
            assert packed.positions_BT[row, seen].tolist() == list(range(case.depth, len(nodes[q])))


@hypothesis.given(cases())
@hypothesis.settings(max_examples=50, deadline=None)
def test_every_target_is_there_once(case: Case) -> None:
    shape, rows = case.batch.shape, case.batch.rows
    packed = pack_batch(case.plan, case.batch, case.groups)
    row_of = {index: row for row, indices in enumerate(rows) for index in indices}
    assert [index for index, _, _ in packed.places] == [index for row in rows for index in row]
    answered: list[set[int]] = [set() for _ in range(case.groups)]
    for index, group, numbers in packed.places:
        found = []
        for number in numbers:
            source, target = packed.sources_GS[group, number], packed.targets_GS[group, number]
            row, slot = divmod(int(source), shape.length)
            row += group * (shape.rows // case.groups)
            assert row == row_of[index]
            found.append((case.nodes(row)[slot], int(target)))  # padding is no node
        assert found == case.wanted(index)
        answered[group] |= set(numbers.tolist())
    for group, used in enumerate(answered):
        # Numbered without gaps, none twice, and what is not asked for is empty.
        assert used == set(range(len(used)))
        pairs = np.stack([packed.sources_GS[group], packed.targets_GS[group]], axis=1)
        assert len({tuple(pair) for pair in pairs[: len(used)].tolist()}) == len(used)
        assert not pairs[len(used) :].any()
    assert packed.scores == max(map(len, answered))


@hypothesis.given(cases())
@hypothesis.settings(max_examples=50, deadline=None)
def test_arrays_are_what_a_program_was_compiled_for(case: Case) -> None:
    shape = case.batch.shape
    packed = pack_batch(case.plan, case.batch, case.groups)
    for array in (packed.tokens_BT, packed.positions_BT, packed.ends_BT):
        assert array.shape == (shape.rows, shape.length)
        assert array.dtype == np.int32
    slots = (case.groups, shape.rows // case.groups * shape.length)
    for array in (packed.sources_GS, packed.targets_GS):
        assert array.shape == slots
        assert array.dtype == np.int32


def test_the_largest_token_is_kept_beside_its_slot() -> None:
    """A score's slot and token travel as one number."""
    last = 2**31 - 1
    paths = distinct_paths([([1, 2], [last]), ([1, 2], [0]), ([1, 3], [last, last])], 50)
    batch = ScoringBatch(Shape(0, 8, 2), None, ((0, 1), (2,)))
    packed = pack_batch(ScoringPlan(paths, ()), batch)
    assert packed.scores == 4
    assert packed.sources_GS[0, :4].tolist() == [1, 1, 8 + 1, 8 + 2]
    assert packed.targets_GS[0, :4].tolist() == [0, last, last, last]
    assert packed.ends_BT[:, :3].tolist() == [[2, 2, 3], [3, 3, 3]]


def test_a_row_that_only_repeats_the_trunk_and_a_token() -> None:
    paths = distinct_paths([([7, 8, 9, 4], [5]), ([7, 8, 9, 4], [6]), ([7, 8, 9, 5], [5])], 50)
    batch = ScoringBatch(Shape(8, 4, 1), (0, 3), ((0, 1, 2),))
    packed = pack_batch(ScoringPlan(paths, ()), batch)
    assert packed.tokens_BT.tolist() == [[4, 5, 0, 0]]
    assert packed.positions_BT.tolist() == [[3, 3, 0, 0]]
    assert packed.ends_BT.tolist() == [[1, 2, 3, 4]]
    assert packed.sources_GS[0, :3].tolist() == [0, 0, 1]
    assert packed.targets_GS[0, :3].tolist() == [5, 6, 5]
