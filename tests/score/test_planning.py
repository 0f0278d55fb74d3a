"""Plans and packed rows: whatever the requests, every path is there, whole and once."""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from chopjax.score import planning
from chopjax.score.layout import Budget, fill, lay_out, past_lengths, row_length
from chopjax.score.packing import pack_batch
from chopjax.score.planning import common_length, distinct_paths, make_plan, trunks

LIMIT = 40  # context length of the tests
SMALL = Budget(tokens=64, shortest=8, attention=32.0, batch=4, shape=64)

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=30)
# Few different beginnings, so that much is shared.
beginnings = st.sampled_from([[], [1] * 5, [1] * 5 + [2] * 9, [3, 1] * 12, [2] * 70])
requests = st.lists(
    st.tuples(st.builds(lambda a, b: a + b, beginnings, tokens), tokens), min_size=1, max_size=40
)


def ancestors(ends: np.ndarray, slot: int) -> list[int]:
    return [k for k in range(slot + 1) if slot < ends[k]]


@hypothesis.given(requests, st.booleans())
@hypothesis.settings(deadline=None, max_examples=60)
def test_every_request_is_computed_once_and_exactly(wanted: list, with_trunks: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MIN_TRUNK", 4 if with_trunks else 10**9)
        plan = make_plan(wanted, LIMIT, SMALL)
    answered: list[int] = []
    for batch in plan.batches:
        groups = 2 if batch.shape.rows % 2 == 0 else 1
        packed = pack_batch(plan, batch, groups)
        depth = batch.trunk[1] if batch.trunk else 0
        assert depth <= batch.shape.past
        assert packed.tokens_BT.shape == (batch.shape.rows, batch.shape.length)
        assert packed.scores <= packed.sources_GS.shape[1]
        for index, group, numbers in packed.places:
            path = plan.paths[index]
            answered += path.requests
            before: np.ndarray | list[int] = (
                plan.paths[batch.trunk[0]].tokens[:depth] if batch.trunk else []
            )
            for place, number in enumerate(numbers):
                row, source = divmod(packed.sources_GS[group, number], batch.shape.length)
                row += group * batch.shape.rows // groups
                chain = ancestors(packed.ends_BT[row], source)
                seen = [*before, *packed.tokens_BT[row, chain]]
                # The token that is scored comes after exactly what the path reads before it.
                at = path.context + place
                assert seen == path.tokens[: at + 1].tolist()
                assert packed.targets_GS[group, number] == path.tokens[at + 1]
                assert packed.positions_BT[row, chain].tolist() == list(range(depth, at + 1))
        # Unused slots see themselves and are seen by nobody else.
        for row in range(len(batch.rows), batch.shape.rows):
            assert (packed.ends_BT[row] == np.arange(1, batch.shape.length + 1)).all()
    assert sorted(answered) == list(range(len(wanted)))


@hypothesis.given(requests)
@hypothesis.settings(deadline=None, max_examples=50)
def test_paths_are_cut_as_the_harness_cuts(wanted: list) -> None:
    for path in distinct_paths(wanted, LIMIT):
        for index in path.requests:
            context, continuation = wanted[index]
            assert path.tokens.tolist() == [*context, *continuation][-(LIMIT + 1) :]
            assert path.scored == len(continuation)


@pytest.mark.parametrize("bad", [([], [1]), ([1], []), ([1], [1] * (LIMIT + 1))])
def test_impossible_requests_are_refused(bad: tuple[list[int], list[int]]) -> None:
    with pytest.raises(ValueError, match="request 1"):
        make_plan([([1], [2]), bad], LIMIT, SMALL)


def test_choices_of_one_question_share_its_tokens() -> None:
    question = list(range(100, 160))
    plan = make_plan([(question, [n, n + 1]) for n in range(4)], 512, Budget())
    (batch,) = plan.batches
    packed = pack_batch(plan, batch)
    assert (packed.tokens_BT > 0).sum() == 60 + 3  # one token of each choice is read; one is 0
    # One-token continuations are four targets of one token, and nothing else is read.
    plan = make_plan([(question, [n]) for n in range(4)], 512, Budget())
    packed = pack_batch(plan, plan.batches[0])
    assert (packed.tokens_BT > 0).sum() == 60
    assert len(set(packed.sources_GS[0, :4].tolist())) == 1


def test_a_long_common_beginning_becomes_a_trunk() -> None:
    generator = np.random.default_rng(0)
    shots = [generator.integers(0, 99, 500).tolist() for _ in range(2)]
    questions = [shot + generator.integers(0, 99, 60).tolist() for shot in shots for _ in range(99)]
    wanted = [(question, [letter]) for question in questions for letter in range(4)]
    plan = make_plan(wanted, 2048, Budget(shape=2000))
    assert {batch.trunk[1] for batch in plan.batches if batch.trunk} == {500}
    assert all(batch.trunk for batch in plan.batches)
    assert len(plan.shapes) <= 2
    assert plan.slots < 0.05 * sum(len(context) for context, _ in wanted)


def test_a_trunk_also_saves_the_attention_of_long_rows() -> None:
    generator = np.random.default_rng(0)
    shots = generator.integers(0, 99, 1000).tolist()
    requests = [(shots + generator.integers(0, 99, 500).tolist(), [n]) for n in range(300)]
    budget = Budget(tokens=16_384, shortest=128, attention=2048.0, batch=1024, shape=200_000)
    assert all(batch.trunk for batch in make_plan(requests, 2048, budget).batches)
    free = dataclasses.replace(budget, attention=1e9)  # 48 rows of 1000 tokens are all it saves
    assert not any(batch.trunk for batch in make_plan(requests, 2048, free).batches)


def test_choices_of_a_prompt_as_long_as_a_row_share_it() -> None:
    """Few-shot prompts cut at the context length share nothing but with their own choices."""
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 99, 3000).tolist() for _ in range(9)]
    for choices in ([[letter] for letter in range(4)], [[letter] * 9 for letter in range(4)]):
        requests = [(prompt, choice) for prompt in prompts for choice in choices]
        plan = make_plan(requests, 2048, Budget())
        assert [len(row) for batch in plan.batches for row in batch.rows] == [4] * 9
        assert plan.slots <= 9 * 2560


def test_a_trunk_never_reaches_into_what_is_scored() -> None:
    """Continuations that begin alike share tokens, but their scores need the logits in between."""
    body = list(range(200))
    wanted = [(body[:80], [*body[80:], 300 + n, *range(400 + n, 460 + n)]) for n in range(200)]
    paths = distinct_paths(wanted, 512)
    found = trunks(paths, planning.shared_lengths(paths), 1024, Budget(shape=500))
    assert [depth for _, _, depth in found] == [79]


@hypothesis.given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), max_size=9))
def test_common_length(one: list[int], other: list[int]) -> None:
    found = common_length(np.array(one), np.array(other))
    assert one[:found] == other[:found]
    assert found == min(len(one), len(other)) or one[found] != other[found]


@hypothesis.given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(0, 50))
def test_bin_packing(sizes: list[int], above: int) -> None:
    rows = fill(sizes, above, 64)
    assert sorted(i for row in rows for i in row) == [
        i for i, size in enumerate(sizes) if above < size <= 64
    ]
    volumes = [sum(sizes[i] for i in row) for row in rows]
    assert all(volume <= 64 for volume in volumes)
    # Best fit never leaves two rows that could have been one.
    assert all(a + b > 64 for i, a in enumerate(volumes) for b in volumes[:i])


@hypothesis.given(
    st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=30), min_size=1, max_size=5),
    st.sampled_from([1, 3, 4]),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_layout_holds_every_tree_once(groups: list[list[int]], shards: int) -> None:
    budget = Budget(tokens=256, shortest=16, shards=shards)
    pasts = [100 * number for number in range(len(groups))]
    found: list[tuple[int, int]] = []
    for piece in lay_out(groups, pasts, budget):
        assert piece.shape.past >= pasts[piece.group]
        assert piece.shape.rows % shards == 0
        assert len(piece.rows) <= piece.shape.rows
        for row in piece.rows:
            assert sum(groups[piece.group][tree] for tree in row) <= piece.shape.length
            found += [(piece.group, tree) for tree in row]
    assert sorted(found) == [(g, t) for g, trees in enumerate(groups) for t in range(len(trees))]


def test_lengths_are_few() -> None:
    budget = Budget(shortest=32)
    assert [row_length(n, budget) for n in (1, 32, 33, 49, 65, 97, 129, 200, 257, 300, 1100)] == [
        32, 32, 48, 64, 80, 112, 160, 224, 320, 320, 1280,
    ]  # fmt: skip
    assert [row_length(n, Budget(shortest=128)) for n in (129, 200, 600)] == [192, 256, 640]
    # Trunks of little use share a past length, those of much use get a fitting one.
    assert past_lengths({500: 1, 700: 1, 0: 5}, 1, budget) == {500: 768, 700: 768, 0: 0}
    many = past_lengths({500: 10**7, 1900: 10**7}, 1, budget)
    assert many == {500: 512, 1900: 2048}
